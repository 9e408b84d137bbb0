// Every member of a record has its name.
// expect: static assertion failed
#include "autograd/operator.h"
struct Record {
  braid::Tensor x;
  braid::Tensor y;
#ifdef RIGHT
  static constexpr std::array<std::string_view, 2> names = {"x", "y"};
#else
  static constexpr std::array<std::string_view, 1> names = {"x"};
#endif
};
static_assert(braid::NamedTensors<Record>);
