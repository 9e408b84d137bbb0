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
  const TilePlace place;
  const Problem& p = params.problem;
  const int64_t stride = p.H * p.V, at = chunk.first * stride + h * p.V;
  const int count = static_cast<int>(chunk.count);
  float sum[4][4] = {};
  add_products(params.d_o + at, static_cast<const device::bf16*>(p.v) + at, stride, p.V, count, tiles, place, sum);
  const auto word_of = [&](int row, int piece) -> uint32_t& {
    return *reinterpret_cast<uint32_t*>(mixed + tile_byte(8 * row + place.lane / 4, piece) + place.lane % 4 * 4);
  };
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int row = 2 * place.band + i, column = 4 * place.half + j, t = place.row(i), s = place.column(j);  // a block of 8×8: the warp's
      if (column > row) continue;
      float x[2];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        x[e] = p.scale * sum[j][2 * i + e];
        if (s + e == t) diagonal[t] = x[e];
        x[e] = s + e < t ? x[e] * decay(t, s + e) : 0.0f;
      }
      const uint32_t below = device::pack_bf16(x[0], x[1]), above = device::transposed_8x8(below);
      if (column == row) {
        word_of(row, row) = below | above;
      } else {
        word_of(row, column) = below;
        word_of(column, row) = above;
      }
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
