// An operator without a backward does not satisfy the contract.
// expect: static assertion failed
#include "autograd/operator.h"
using namespace braid;
struct Half {
  static constexpr std::string_view name = "half";
  struct Inputs {
    Tensor x;
    static constexpr std::array<std::string_view, 1> names = {"x"};
  };
  struct Outputs {
    Tensor y;
    static constexpr std::array<std::string_view, 1> names = {"y"};
  };
  struct Saved {};
  struct Attrs {};
  static Outputs allocate(Context&, const Inputs&, const Attrs&);
  static Saved forward_cpu(Context&, const Inputs&, const Attrs&, Outputs&);
#ifdef RIGHT
  static void backward_cpu(Context&, const Saved&, const Attrs&, const Outputs&, Inputs&);
#endif
};
static_assert(Differentiable<Half>);
