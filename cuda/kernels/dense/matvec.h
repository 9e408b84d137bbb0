// A matrix times one vector: what decoding one token is made of, bound by reading the matrix once.
#pragma once
#include "core/context.h"

namespace braid::cuda {

/// True when multiply_vector takes these: bf16, k a multiple of 8, addresses that 16-byte accesses may start at.
bool takes_vector(const Tensor& weight, const Tensor& x, const Tensor& y);
/// y [n] = weight [n, k] · x [k], accumulated in float32 in a fixed order.
void multiply_vector(Context& ctx, const Tensor& weight, const Tensor& x, const Tensor& y);

}  // namespace braid::cuda
