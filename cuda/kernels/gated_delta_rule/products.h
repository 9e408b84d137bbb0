// The products of a walk: S^T of 16 columns of V, or sums like it, with the tiles of a chunk. Device code.
#pragma once
#include "cuda/kernels/gated_delta_rule/chunks.h"
#include "cuda/kernels/gated_delta_rule/tiles.h"

namespace braid::delta_cuda {

/// c [16, 64] += S^T x^T for a tile of rows of K channels, from the channel that `tile` is the address of; a: the fragments of S^T. x may have a
/// rest, in the next tile.
template <int K, int keys, bool has_rest = false>
__device__ inline void multiply_state(float (&c)[8][4], const uint32_t (&a)[keys / 16][4], uint32_t tile) {
  const uint32_t lane = lane_offset<K, true>();
#pragma unroll
  for (int n = 0; n < keys / 16; ++n)
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      uint32_t b[4];
      device::ldmatrix_x4(b, tile + block_at<K>(lane, 16 * m, 16 * n));
      mma_two(c[2 * m], c[2 * m + 1], a[n], b);
      if constexpr (has_rest) {
        device::ldmatrix_x4(b, tile + kChunk * K * 2 + block_at<K>(lane, 16 * m, 16 * n));
        mma_two(c[2 * m], c[2 * m + 1], a[n], b);
      }
    }
}
template <int keys>
__device__ inline void to_state_fragments(uint32_t (&a)[keys / 16][4], const float (&state)[keys / 8][4]) {
#pragma unroll
  for (int n = 0; n < keys / 16; ++n) to_fragment(a[n], state[2 * n], state[2 * n + 1]);
}

/// The same with what the fragments lack of S^T.
template <int K, int keys>
__device__ inline void multiply_state_rest(float (&c)[8][4], const float (&state)[keys / 8][4], uint32_t tile) {
  const uint32_t lane = lane_offset<K, true>();
#pragma unroll
  for (int n = 0; n < keys / 16; ++n) {
    uint32_t a[4], rest[4];
    to_fragments(a, rest, state[2 * n], state[2 * n + 1]);
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      uint32_t b[4];
      device::ldmatrix_x4(b, tile + block_at<K>(lane, 16 * m, 16 * n));
      mma_two(c[2 * m], c[2 * m + 1], rest, b);
    }
  }
}

/// S^T [16, keys] += (a + rest) x for 16 tokens, from `token` on; x may have a rest, in the next tile. Two n-tiles take their turns so that no
/// sum waits for itself.
template <int K, int keys, bool has_rest, bool tile_has_rest = false>
__device__ inline void update_state(float (&state)[keys / 8][4], const uint32_t (&a)[4], const uint32_t (&rest)[4], uint32_t tile, int token) {
  const uint32_t lane = lane_offset<K, false>();
#pragma unroll
  for (int n = 0; n < keys / 16; n += 2) {
    uint32_t b[2][4];
    device::ldmatrix_x4_transposed(b[0], tile + block_at<K>(lane, token, 16 * n));
    device::ldmatrix_x4_transposed(b[1], tile + block_at<K>(lane, token, 16 * n + 16));
    mma_two(state[2 * n], state[2 * n + 1], a, b[0]);
    mma_two(state[2 * n + 2], state[2 * n + 3], a, b[1]);
    if constexpr (has_rest) {
      mma_two(state[2 * n], state[2 * n + 1], rest, b[0]);
      mma_two(state[2 * n + 2], state[2 * n + 3], rest, b[1]);
    }
    if constexpr (tile_has_rest) {
      device::ldmatrix_x4_transposed(b[0], tile + kChunk * K * 2 + block_at<K>(lane, token, 16 * n));
      device::ldmatrix_x4_transposed(b[1], tile + kChunk * K * 2 + block_at<K>(lane, token, 16 * n + 16));
      mma_two(state[2 * n], state[2 * n + 1], a, b[0]);
      mma_two(state[2 * n + 2], state[2 * n + 3], a, b[1]);
    }
  }
}
/// The decay of a state over a chunk.
template <class Plan>
__device__ inline void decay_state(float (&state)[Plan::kKeys / 8][4], const float* factors, int member) {
  if constexpr (Plan::kByChannel) return scale_each(state, factors + kTotals + member * Plan::kKeys);
  const float total = expf(factors[kLogDecay * kChunk + kChunk - 1]);
#pragma unroll
  for (int n = 0; n < Plan::kKeys / 8; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) state[n][i] *= total;
}

/// c [16, 64] = x A^T (or x A when `transposed`) for the lower triangle A, which is a bf16 and its rest, as is x.
template <bool transposed>
__device__ inline void multiply_inverse(float (&c)[8][4], const float (&x)[8][4], uint32_t inverse) {
  const uint32_t at = inverse + lane_offset<16, !transposed>();
  float small[8][4] = {};  // products with a rest, summed apart so that no sum waits for itself
#pragma unroll
  for (int l = 0; l < 4; ++l) {
    uint32_t a[4], rest[4];
    to_fragments(a, rest, x[2 * l], x[2 * l + 1]);
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      if (transposed ? m > l : m < l) continue;
      uint32_t b[4], b_rest[4];
      const uint32_t block = at + (transposed ? triangle_block(l, m) : triangle_block(m, l));
      if constexpr (transposed) device::ldmatrix_x4_transposed(b, block), device::ldmatrix_x4_transposed(b_rest, block + kTriangleBytes);
      else device::ldmatrix_x4(b, block), device::ldmatrix_x4(b_rest, block + kTriangleBytes);
      mma_two(c[2 * m], c[2 * m + 1], a, b);
      mma_two(small[2 * m], small[2 * m + 1], rest, b);
      mma_two(small[2 * m], small[2 * m + 1], a, b_rest);
    }
  }
#pragma unroll
  for (int n = 0; n < 8; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) c[n][i] += small[n][i];
}

}  // namespace braid::delta_cuda
