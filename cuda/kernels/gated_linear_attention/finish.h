// What the gradients of q, k and the decays of a chunk begin with, and how those of the decays end. Device code.
#pragma once
#include "cuda/kernels/gated_linear_attention/place.h"
#include "cuda/runtime/check.h"

namespace braid::gla_cuda {

/// With P_ts = scale d_o_t · v_s: the symmetric matrix M [64, 64] of decay(t, s) P_ts for s < t, zero on the diagonal, and the diagonal of
/// P. `tiles`: four of scratch. Needs a barrier after.
template <class Decay>
__device__ inline void mix(const FinishParams& params, const Piece& chunk, int64_t h, char (*tiles)[8192], char* mixed, float* diagonal,
                           Decay&& decay) {
  const Place place;
  const Problem& p = params.problem;
  const int64_t stride = p.H * p.V, at = chunk.first * stride + h * p.V;
  const int count = static_cast<int>(chunk.count);
  float sum[4][4] = {};
  add_products(params.d_o + at, static_cast<const device::bf16*>(p.v) + at, stride, p.V, count, tiles, place, sum);
  const auto put = [&](int t, int s, float x) {
    *reinterpret_cast<device::bf16*>(mixed + tile_byte(t, s / 8) + s % 8 * 2) = device::from_float<device::bf16>(x);
  };
#pragma unroll
  for (int j = 0; j < 4; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int t = place.row(i / 2), s = place.column(j) + i % 2;
      float x = p.scale * sum[j][i];
      if (s == t) put(t, t, 0), diagonal[t] = x;
      if (s >= t) continue;
      x *= decay(t, s);
      put(t, s, x), put(s, t, x);
    }
}

/// Of what d_log_decay sums across a whole chunk, at an element of [chunks, H, K].
__device__ inline float spanning_at(const FinishParams& params, int64_t at) {
  const int64_t part = params.chunks.slots * params.problem.H * params.problem.K;
  return params.parts == 2 ? params.spanning[at] + params.spanning[part + at] : params.spanning[at];
}

__device__ inline void store_decay(const FinishParams& params, int64_t at, float x) {
  if (params.d_decay_is_float) static_cast<float*>(params.d_decay)[at] = x;
  else static_cast<device::bf16*>(params.d_decay)[at] = device::from_float<device::bf16>(x);
}

}  // namespace braid::gla_cuda
