// Tiles of 64 tokens in shared memory, as ldmatrix reads them.
#pragma once
#include "cuda/device/mma.h"
#include "cuda/device/scalar.h"

namespace braid::gla_cuda {

/// The byte of (row, 16-byte piece) in a tile of 64 rows of bf16: panels of 64 columns one after the other, pieces permuted by the row,
/// so that eight rows of one column lie in different banks. It is also the layout in which wgmma takes operands (wgmma.h).
inline constexpr int kPanelBytes = 8192;
__device__ inline int tile_byte(int row, int piece) { return piece / 8 * kPanelBytes + row * 128 + ((piece % 8 ^ row % 8) << 4); }

/// How `threads` share out the 16-byte pieces of a tile of 64 rows: a thread keeps to one piece of its rows, so that what is left of the
/// addresses is an addition.
template <int columns, int threads>
struct TileShare {
  static constexpr int kPieces = columns / 8, kRows = threads / kPieces, kCount = 64 / kRows;
  const int first = threadIdx.x / kPieces, piece = threadIdx.x % kPieces;

  __device__ int row(int i) const { return first + i * kRows; }
  __device__ int byte(int i) const { return kRows % 8 == 0 ? tile_byte(first, piece) + i * kRows * 128 : tile_byte(row(i), piece); }
};

/// Begins the copy of 64 rows, zeros from row `count` > 0 on; `stride` in elements.
template <int columns, int threads>
__device__ inline void load_tile(uint32_t tile, const device::bf16* from, int64_t stride, int count) {
  using Share = TileShare<columns, threads>;
  const Share share;
  const int64_t step = Share::kRows * stride;
  const device::bf16* at = from + share.first * stride + share.piece * 8;
  if (count == 64) {
#pragma unroll
    for (int i = 0; i < Share::kCount; ++i, at += step) device::cp_async16(tile + share.byte(i), at);
  } else {
#pragma unroll 1
    for (int i = 0; i < Share::kCount; ++i, at += step)
      device::cp_async16(tile + share.byte(i), share.row(i) < count ? at : from, share.row(i) < count);
  }
}

/// Writes the first `count` rows of a tile.
template <int columns, int threads>
__device__ inline void store_tile(const char* tile, device::bf16* to, int64_t stride, int count) {
  using Share = TileShare<columns, threads>;
  const Share share;
  const int64_t step = Share::kRows * stride;
  device::bf16* at = to + share.first * stride + share.piece * 8;
#pragma unroll
  for (int i = 0; i < Share::kCount; ++i, at += step)
    if (share.row(i) < count) *reinterpret_cast<uint4*>(at) = *reinterpret_cast<const uint4*>(tile + share.byte(i));
}

__device__ inline uint32_t scaled_word(uint32_t word, float2 factor) {
  return device::pack_bf16(device::low_bf16(word) * factor.x, device::high_bf16(word) * factor.y);
}

/// a b + c of two bf16 each, rounded once.
__device__ inline uint32_t fma_words(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t result;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
  return result;
}

/// Writes the pairs (t, s) and (t, s + 1), s even, into a tile [64, 64].
__device__ inline void put_pair(char* tile, int t, int s, float left, float right) {
  *reinterpret_cast<uint32_t*>(tile + tile_byte(t, s / 8) + s % 8 * 2) = device::pack_bf16(left, right);
}

/// Addresses of the four 8×8 matrices that ldmatrix_x4 takes for a 16×16 block of a tile, one row of one matrix a lane. `by_rows`:
/// matrices 0 and 1 lie below each other (a operand of [m][k]; b operands, transposed, of [k][n]); else side by side (b operands of
/// [n][k]; a operand, transposed, of [k][m]).
struct BlockAddress {
  uint32_t row;     // of the lane's row in rows 0 … 15 of the tile
  uint32_t column;  // the lane's piece, permuted

  __device__ BlockAddress(uint32_t tile, bool by_rows) {
    const int lane = threadIdx.x % 32, low = lane / 8 % 2, high = lane / 16;
    row = tile + (lane % 8 + 8 * (by_rows ? low : high)) * 128;
    column = ((by_rows ? high : low) ^ lane % 8) << 4;
  }
  /// Of the block at (16 i, 16 j).
  __device__ uint32_t at(int i, int j) const { return row + i * 2048 + j / 4 * kPanelBytes + (column ^ (j % 4 * 32)); }
};

}  // namespace braid::gla_cuda
