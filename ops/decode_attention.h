// Attention of one new token per sequence to a cache of fixed size: what a recorded graph decodes with.
#pragma once
#include "core/context.h"

namespace braid {

/// With CUDA only (cuda/kernels/decode_attention); ops/attention.h is the definition. Writes k and v [1, HK, D] to row position mod capacity of
/// the rings [capacity, HK, D], then attends from q [1, H, D] to all min(position + 1, capacity) rows that are live (a window is a ring of
/// its length): o [1, H, D]. `position` i64 [1] is read on the device. No gradient. Errors: shapes and dtypes that do not fit, D above 256.
Tensor decode_attention_cuda(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& ring_k, const Tensor& ring_v,
                             const Tensor& position);
/// position += count, i64 [S], on the device.
void advance_positions_cuda(Context& ctx, const Tensor& position, int64_t count);

}  // namespace braid
