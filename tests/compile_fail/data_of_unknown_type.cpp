// Typed access knows the element types that tensors have, and no other.
// expect: use of deleted function
#include "core/tensor.h"
#ifdef RIGHT
float* data(const braid::Tensor& tensor) { return tensor.data<float>(); }
#else
long double* data(const braid::Tensor& tensor) { return tensor.data<long double>(); }
#endif
