// A module is not copied: its parameters are known by their address.
// expect: use of deleted function
#include "models/module.h"
struct Layer : braid::Module {
  braid::Parameter weight;
};
#ifdef RIGHT
const Layer& same(const Layer& layer) { return layer; }
#else
Layer same(const Layer& layer) { return layer; }
#endif
