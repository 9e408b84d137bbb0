// Exponentials, the decays that channels share, and where the elements of a chunk's tiles lie in a block's threads. Device code.
#pragma once
#include "cuda/device/token_tile.h"
#include "cuda/kernels/gated_linear_attention/cut.h"
#include "cuda/kernels/gated_linear_attention/tiles.h"

namespace braid::gla_cuda {

using device::TilePlace;

inline constexpr int kColumns = 64;  // key channels at once

/// log2 of the decay of the chunk's token t, which the head's channels share.
__device__ inline float head_decay(const Problem& p, const Piece& chunk, int64_t h, int t) {
  if (!p.log_decay || t >= chunk.count) return 0;
  const int64_t at = (chunk.first + t) * p.decay_token + h * p.decay_head;
  const float log_decay =
      p.decay_is_float ? static_cast<const float*>(p.log_decay)[at] : device::to_float(static_cast<const device::bf16*>(p.log_decay)[at]);
  return device::log2_decay(log_decay);
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

using Words = uint32_t[2][4];  // two bf16 each

/// sum += a [this place's 16 tokens, 64] · (b [its 32 rows, 64])ᵀ, tiles of 64 columns.
__device__ inline void add_row_products(const char* a_tile, const char* b_tile, const TilePlace& place, float (&sum)[4][4]) {
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
                                    const TilePlace& place, float (&sum)[4][4]) {
  const auto begin = [&](int64_t column) {
    if (column < columns) {
      char(*const pair)[8192] = tiles + column / 64 % 2 * 2;
      load_tile<64, device::kTileThreads>(device::shared_address(pair[0]), a + column, stride, count);
      load_tile<64, device::kTileThreads>(device::shared_address(pair[1]), b + column, stride, count);
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
