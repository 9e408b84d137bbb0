// The general path: float32 arithmetic in shared memory, any head dimensions up to 256.
#pragma once
#include "core/context.h"
#include "cuda/kernels/attention/problem.h"

namespace braid::attention {

constexpr int64_t kMaxHeadDim = 256;

void plain_forward(Context& ctx, const Problem& problem);
/// Needs delta.
void plain_backward(Context& ctx, const Problem& problem);

/// delta [Nq, H] = <d_o, o> − d_lse; d_o and d_lse may be null.
void launch_delta(Context& ctx, const Problem& problem, const float* d_lse, float* delta);

}  // namespace braid::attention
