// An operator's records hold tensors only; numbers belong to Attrs.
// expect: a record holds at most twelve Tensors and nothing else
#include "autograd/operator.h"
struct Record {
  braid::Tensor x;
#ifndef RIGHT
  int count;
#endif
};
auto members(Record& record) { return braid::tensors_of(record); }
