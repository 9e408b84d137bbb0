// Tiles of tokens in shared memory and their products with mma.sync: a warp has 16 rows of a product.
#pragma once
#include "cuda/device/mma.h"
#include "cuda/kernels/attention/problem.h"

namespace braid::attention {

using device::bf16;

constexpr float kLog2E = 1.4426950408889634f;

/// kRows rows of D bf16 in shared memory, their 16-byte pieces permuted within the row: eight rows of a column of pieces meet all banks.
template <int kRows, int D>
struct SharedTile {
  static constexpr int kBytes = kRows * D * 2;
  uint32_t base;

  __device__ uint32_t at(int row, int piece) const { return base + row * (D * 2) + (piece ^ (row & 7)) * 16; }

  /// Starts the copy of `count` rows, `stride` elements apart, from `from` on, by kThreads threads; the rows after them become zeros.
  template <int kThreads>
  __device__ void load(const bf16* from, int64_t stride, int64_t count, int thread = threadIdx.x) const {
    constexpr int kPieces = D / 8;
#pragma unroll
    for (int i = thread; i < kRows * kPieces; i += kThreads) {
      const int row = i / kPieces, piece = i % kPieces;
      const bool live = row < count;
      device::cp_async16(at(row, piece), from + (live ? row * stride : 0) + piece * 8, live);
    }
  }

  /// The left operand: rows [row, row + 16), columns [16 step, 16 step + 16).
  __device__ void left(uint32_t (&a)[4], int row, int step) const {
    const int lane = threadIdx.x % 32;
    device::ldmatrix_x4(a, at(row + lane % 16, 2 * step + lane / 16));
  }
  /// The right operand of · tile^T: rows [row, row + 16) as n, columns [16 step, 16 step + 16) as k; two n-tiles of 8.
  __device__ void right_of_rows(uint32_t (&b)[4], int row, int step) const {
    const int lane = threadIdx.x % 32;
    device::ldmatrix_x4(b, at(row + lane % 8 + lane / 16 * 8, 2 * step + lane / 8 % 2));
  }
  /// The right operand of · tile: rows [row, row + 16) as k, columns [16 column, 16 column + 16) as n; two n-tiles of 8.
  __device__ void right_of_columns(uint32_t (&b)[4], int row, int column) const {
    const int lane = threadIdx.x % 32;
    device::ldmatrix_x4_transposed(b, at(row + lane % 16, 2 * column + lane / 16));
  }
};

/// A warp's 16 rows of a product: n-tile j of 8 columns; this thread has rows lane / 4 and lane / 4 + 8, columns 2 (lane % 4) + 0..1.
template <int kColumns>
using Sums = float[kColumns / 8][4];

template <int kColumns>
__device__ void clear(Sums<kColumns>& sums) {
#pragma unroll
  for (int j = 0; j < kColumns / 8; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[j][i] = 0;
}

__device__ inline void mma_pair(float (&first)[4], float (&second)[4], const uint32_t (&a)[4], const uint32_t (&b)[4]) {
  device::mma_bf16(first, a, {b[0], b[1]});
  device::mma_bf16(second, a, {b[2], b[3]});
}

/// s = rows [row, row + 16) of left · right^T.
template <int kLeft, int kColumns, int D>
__device__ void multiply_rows(Sums<kColumns>& s, const SharedTile<kLeft, D>& left, int row, const SharedTile<kColumns, D>& right) {
  clear<kColumns>(s);
#pragma unroll
  for (int step = 0; step < D / 16; ++step) {
    uint32_t a[4];
    left.left(a, row, step);
#pragma unroll
    for (int j = 0; j < kColumns / 16; ++j) {
      uint32_t b[4];
      right.right_of_rows(b, 16 * j, step);
      mma_pair(s[2 * j], s[2 * j + 1], a, b);
    }
  }
}

/// Columns [16 step, 16 step + 16) of a product, rounded to bf16, as a left operand.
template <int kColumns>
__device__ void rounded(uint32_t (&a)[4], const Sums<kColumns>& s, int step) {
  a[0] = device::pack_bf16(s[2 * step][0], s[2 * step][1]);
  a[1] = device::pack_bf16(s[2 * step][2], s[2 * step][3]);
  a[2] = device::pack_bf16(s[2 * step + 1][0], s[2 * step + 1][1]);
  a[3] = device::pack_bf16(s[2 * step + 1][2], s[2 * step + 1][3]);
}

/// sums += s · right, s rounded to bf16.
template <int kInner, int D>
__device__ void add_product(Sums<D>& sums, const Sums<kInner>& s, const SharedTile<kInner, D>& right) {
#pragma unroll
  for (int step = 0; step < kInner / 16; ++step) {
    uint32_t a[4];
    rounded<kInner>(a, s, step);
#pragma unroll
    for (int j = 0; j < D / 16; ++j) {
      uint32_t b[4];
      right.right_of_columns(b, 16 * step, j);
      mma_pair(sums[2 * j], sums[2 * j + 1], a, b);
    }
  }
}

/// Over the four lanes that share a row.
__device__ inline float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
__device__ inline float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

/// This thread's part of row i (0: lane / 4, 1: lane / 4 + 8) of sums, times factor, to the row that begins at `to`.
template <int D>
__device__ void store_row(bf16* to, const Sums<D>& sums, int i, float factor) {
#pragma unroll
  for (int j = 0; j < D / 8; ++j)
    *reinterpret_cast<uint32_t*>(to + 8 * j + 2 * (threadIdx.x % 4)) = device::pack_bf16(sums[j][2 * i] * factor, sums[j][2 * i + 1] * factor);
}

}  // namespace braid::attention
