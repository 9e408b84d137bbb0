// Exponentials, the decays that channels share, and where the elements of a chunk's tiles lie in a block's threads. Device code.
#pragma once
#include "cuda/kernels/gated_linear_attention/cut.h"
#include "cuda/kernels/gated_linear_attention/tiles.h"

namespace braid::gla_cuda {

inline constexpr int kColumns = 64;  // key channels at once
inline constexpr int kPlaceThreads = 256;
// exp2 of it is zero in float32; sums of 64 keep three digits of any weaker decay beside it, and no infinity meets another.
inline constexpr float kForgotten = -150;

__device__ inline float exp2_of(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

__device__ inline float exp_of(float x) { return exp2_of(x * 1.4426950408889634f); }

/// log2 of the decay of the chunk's token t, which the head's channels share; a NaN stays one.
__device__ inline float head_decay(const Problem& p, const Piece& chunk, int64_t h, int t) {
  if (!p.log_decay || t >= chunk.count) return 0;
  const int64_t at = (chunk.first + t) * p.decay_token + h * p.decay_head;
  const float log_decay =
      p.decay_is_float ? static_cast<const float*>(p.log_decay)[at] : device::to_float(static_cast<const device::bf16*>(p.log_decay)[at]);
  const float scaled = log_decay * 1.4426950408889634f;
  return scaled < kForgotten ? kForgotten : scaled;
}

/// log2 of the product of those up to and with t: sums [64]; past the chunk's end as of its last token. `scratch` [64]. Needs a barrier after.
__device__ inline void sum_head_decays(const Problem& p, const Piece& chunk, int64_t h, float* sums, float* scratch) {
  const int t = threadIdx.x;
  if (t < 64) scratch[t] = head_decay(p, chunk, h, t);
  __syncthreads();
  float sum = 0;
  for (int i = 0; t < 64 && i <= t; ++i) sum += scratch[i];
  if (t < 64) sums[t] = sum;
}

/// The elements of a tile of 64 tokens and 64 channels that a thread owns, as accumulators of mma lie: warps share out 4 × 2 blocks of 16
/// tokens and 32 channels; element [i][j] is channels column(j), + 1 of token row(i).
struct Place {
  const int lane = threadIdx.x % 32, band = threadIdx.x / 32 % 4, half = threadIdx.x / 128;
  __device__ int row(int i) const { return 16 * band + lane / 4 + 8 * i; }
  __device__ int column(int j) const { return 32 * half + 8 * j + lane % 4 * 2; }
  __device__ int byte(int i, int j) const { return tile_byte(row(i), 4 * half + j) + lane % 4 * 4; }
};

using Words = uint32_t[2][4];  // two bf16 each

__device__ inline uint32_t& word_at(char* tile, const Place& place, int i, int j) { return *reinterpret_cast<uint32_t*>(tile + place.byte(i, j)); }

/// body(i, j) for all eight elements of a thread.
template <class Body>
__device__ inline void each(Body&& body) {
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) body(i, j);
}

/// sum += a [this place's 16 tokens, 64] · (b [its 32 rows, 64])ᵀ, tiles of 64 columns.
__device__ inline void add_row_products(const char* a_tile, const char* b_tile, const Place& place, float (&sum)[4][4]) {
  const BlockAddress a_at(device::shared_address(a_tile), true), b_at(device::shared_address(b_tile), false);
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    uint32_t a[4];
    device::ldmatrix_x4(a, a_at.at(place.band, k));
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      uint32_t b[4];
      device::ldmatrix_x4(b, b_at.at(2 * place.half + j, k));
      device::mma_bf16(sum[2 * j], a, {b[0], b[1]});
      device::mma_bf16(sum[2 * j + 1], a, {b[2], b[3]});
    }
  }
}

/// sum += a bᵀ, both 64 rows of `columns` with the same stride, of which the first `count` are read. `tiles`: four of scratch.
__device__ inline void add_products(const device::bf16* a, const device::bf16* b, int64_t stride, int64_t columns, int count, char (*tiles)[8192],
                                    const Place& place, float (&sum)[4][4]) {
  const auto begin = [&](int64_t column) {
    if (column < columns) {
      char(*const pair)[8192] = tiles + column / 64 % 2 * 2;
      load_tile<64, kPlaceThreads>(device::shared_address(pair[0]), a + column, stride, count);
      load_tile<64, kPlaceThreads>(device::shared_address(pair[1]), b + column, stride, count);
    }
    device::cp_async_commit();
  };
  begin(0);
  for (int64_t column = 0; column < columns; column += 64) {
    begin(column + 64);
    device::cp_async_wait<1>();
    __syncthreads();
    add_row_products(tiles[column / 64 % 2 * 2], tiles[column / 64 % 2 * 2 + 1], place, sum);
    __syncthreads();
  }
}

}  // namespace braid::gla_cuda
