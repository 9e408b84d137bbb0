// Tiles of 64 tokens in shared memory, as ldmatrix reads them.
#pragma once
#include "cuda/device/mma.h"
#include "cuda/device/scalar.h"

namespace braid::gla_cuda {

/// The byte of (row, 16-byte piece) in a tile of 64 rows of bf16: panels of 64 columns one after the other, pieces permuted by the row,
/// so that eight rows of one column lie in different banks. It is also the layout in which wgmma takes operands (wgmma.h).
inline constexpr int kPanelBytes = 8192;
__device__ inline int tile_byte(int row, int piece) { return piece / 8 * kPanelBytes + row * 128 + ((piece % 8 ^ row % 8) << 4); }

/// Begins the copy of 64 rows, zeros from row `count` > 0 on; `stride` in elements. A thread keeps to one piece of its rows, so that
/// what is left of the addresses is an addition.
__device__ inline void load_tile(uint32_t tile, const device::bf16* from, int64_t stride, int columns, int count) {
  const int pieces = columns / 8, piece = threadIdx.x % pieces, rows = blockDim.x / pieces;
  const int64_t step = rows * stride;
  int row = threadIdx.x / pieces;
  const device::bf16* at = from + row * stride + piece * 8;
#pragma unroll 4
  for (; row < 64; row += rows, at += step) device::cp_async16(tile + tile_byte(row, piece), row < count ? at : from, row < count);
}

/// Writes the first `count` rows of a tile.
__device__ inline void store_tile(const char* tile, device::bf16* to, int64_t stride, int columns, int count) {
  const int pieces = columns / 8, piece = threadIdx.x % pieces, rows = blockDim.x / pieces;
  const int64_t step = rows * stride;
  int row = threadIdx.x / pieces;
  device::bf16* at = to + row * stride + piece * 8;
#pragma unroll 4
  for (; row < count; row += rows, at += step) *reinterpret_cast<uint4*>(at) = *reinterpret_cast<const uint4*>(tile + tile_byte(row, piece));
}

/// Writes the pairs (t, s) and (t, s + 1), s even, into a tile [64, 64]; `transposed`: s is the row.
__device__ inline void put_pair(char* tile, int t, int s, float left, float right, bool transposed) {
  if (!transposed) {
    *reinterpret_cast<uint32_t*>(tile + tile_byte(t, s / 8) + s % 8 * 2) = device::pack_bf16(left, right);
    return;
  }
  *reinterpret_cast<device::bf16*>(tile + tile_byte(s, t / 8) + t % 8 * 2) = device::from_float<device::bf16>(left);
  *reinterpret_cast<device::bf16*>(tile + tile_byte(s + 1, t / 8) + t % 8 * 2) = device::from_float<device::bf16>(right);
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
