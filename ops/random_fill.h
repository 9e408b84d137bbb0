// Random first values, drawn where they will live.
#pragma once
#include "core/context.h"

namespace braid {

/// What Random(seed, stream) starts from.
struct RandomKey {
  uint64_t seed = 0, stream = 0;
};
/// The key of Random(seed).split(name).
RandomKey split_key(uint64_t seed, uint64_t name);

/// values[i] = scale · the i-th normal() of Random(key.seed, key.stream), f32 or f64, contiguous: the same bits for any number of threads. On a GPU
/// the logarithm and the cosine (both double) may differ from the host's in the last bit, and so, rarely, a float in its last.
void fill_normal(Context& ctx, const Tensor& values, const RandomKey& key, double scale);

/// With CUDA only (cuda/kernels/random).
void fill_normal_cuda(Context& ctx, const Tensor& values, const RandomKey& key, double scale);

}  // namespace braid
