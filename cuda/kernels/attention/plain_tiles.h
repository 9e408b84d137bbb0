// Tiles in shared memory and products of the general path, in float, without tensor cores.
#pragma once
#include "cuda/kernels/attention/problem.h"
#include "cuda/runtime/check.h"

namespace braid::attention::plain {

// 256 threads as 16 × 16: thread (x, y) has rows y·kRows … of a product and every 16th column from x on. Tiles lie in shared memory
// in float, zero outside, with one float of padding a row: 16 threads that read a column of 16 rows meet 16 banks.
template <int dim>
struct Plan {
  static constexpr int kDim = dim;
  static constexpr int kRows = dim > 128 ? 2 : 4;
  static constexpr int kTile = 16 * kRows;
  static constexpr int kColumns = dim / 16;
  static constexpr int kStride = dim + 1, kScoreStride = kTile + 1;
  static constexpr size_t tile_bytes() { return size_t{kTile} * kStride * sizeof(float); }
  static constexpr size_t score_bytes() { return size_t{kTile} * kScoreStride * sizeof(float); }
};
constexpr int kThreads = 256;

/// An element of a bf16 or float tensor. The dtype is a run-time value: loads and stores are not what a plain kernel waits for, and
/// every kernel is built once instead of twice.
__device__ inline float element(const void* x, bool is_bf16, int64_t at) {
  return is_bf16 ? device::to_float(static_cast<const device::bf16*>(x)[at]) : static_cast<const float*>(x)[at];
}
__device__ inline void set_element(void* x, bool is_bf16, int64_t at, float value) {
  if (is_bf16) static_cast<device::bf16*>(x)[at] = device::from_float<device::bf16>(value);
  else static_cast<float*>(x)[at] = value;
}

/// Rows [first, first + kTile) of head h of x [tokens, heads, dim]; rows from `count` on, and all when x is null, are zero.
template <class P>
__device__ void load_tile(float* tile, const void* x, bool is_bf16, int64_t first, int64_t count, int64_t h, int64_t heads, int64_t dim) {
  for (int at = threadIdx.x; at < P::kTile * P::kDim; at += kThreads) {
    const int row = at / P::kDim, column = at % P::kDim;
    const bool inside = x && row < count && column < dim;
    tile[row * P::kStride + column] = inside ? element(x, is_bf16, ((first + row) * heads + h) * dim + column) : 0.0f;
  }
}

/// s = a b^T of two tiles.
template <class P>
__device__ void row_products(const float* a, const float* b, float (&s)[P::kRows][P::kRows]) {
  const int x = threadIdx.x % 16, y = threadIdx.x / 16;
#pragma unroll
  for (int i = 0; i < P::kRows; ++i)
#pragma unroll
    for (int j = 0; j < P::kRows; ++j) s[i][j] = 0;
#pragma unroll 4
  for (int d = 0; d < P::kDim; ++d) {
    float left[P::kRows], right[P::kRows];
#pragma unroll
    for (int i = 0; i < P::kRows; ++i) left[i] = a[(y * P::kRows + i) * P::kStride + d];
#pragma unroll
    for (int j = 0; j < P::kRows; ++j) right[j] = b[(x + 16 * j) * P::kStride + d];
#pragma unroll
    for (int i = 0; i < P::kRows; ++i)
#pragma unroll
      for (int j = 0; j < P::kRows; ++j) s[i][j] += left[i] * right[j];
  }
}

/// sums += scores · b.
template <class P>
__device__ void add_product(const float* scores, const float* b, float (&sums)[P::kRows][P::kColumns]) {
  const int x = threadIdx.x % 16, y = threadIdx.x / 16;
#pragma unroll 2
  for (int k = 0; k < P::kTile; ++k) {
    float left[P::kRows];
#pragma unroll
    for (int i = 0; i < P::kRows; ++i) left[i] = scores[(y * P::kRows + i) * P::kScoreStride + k];
#pragma unroll
    for (int c = 0; c < P::kColumns; ++c) {
      const float right = b[k * P::kStride + x + 16 * c];
#pragma unroll
      for (int i = 0; i < P::kRows; ++i) sums[i][c] += left[i] * right;
    }
  }
}

template <class P>
__device__ void store_scores(float* scores, const float (&s)[P::kRows][P::kRows]) {
  const int x = threadIdx.x % 16, y = threadIdx.x / 16;
#pragma unroll
  for (int i = 0; i < P::kRows; ++i)
#pragma unroll
    for (int j = 0; j < P::kRows; ++j) scores[(y * P::kRows + i) * P::kScoreStride + x + 16 * j] = s[i][j];
}

template <class P>
__device__ void clear(float (&sums)[P::kRows][P::kColumns]) {
#pragma unroll
  for (int i = 0; i < P::kRows; ++i)
#pragma unroll
    for (int c = 0; c < P::kColumns; ++c) sums[i][c] = 0;
}

/// Row i of the thread, times factor, to head h of to [tokens, heads, dim]; row counts from the token `first`.
template <class P>
__device__ void store_row(void* to, bool is_bf16, const float (&sums)[P::kColumns], float factor, int64_t token, int64_t h, int64_t heads,
                          int64_t dim) {
  const int x = threadIdx.x % 16;
#pragma unroll
  for (int c = 0; c < P::kColumns; ++c) {
    const int column = x + 16 * c;
    if (column < dim) set_element(to, is_bf16, (token * heads + h) * dim + column, sums[c] * factor);
  }
}

/// Over the 16 threads of a row.
__device__ inline float row_max(float x) {
#pragma unroll
  for (int offset = 8; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, offset));
  return x;
}
__device__ inline float row_sum(float x) {
#pragma unroll
  for (int offset = 8; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
  return x;
}

/// body.operator()<Plan>() for the smallest plan that holds both head dimensions.
template <class Body>
void dispatch_plan(const Problem& problem, Body&& body) {
  const int64_t dim = problem.D > problem.DV ? problem.D : problem.DV;
  if (dim <= 64) body.template operator()<Plan<64>>();
  else if (dim <= 128) body.template operator()<Plan<128>>();
  else body.template operator()<Plan<256>>();
}

inline cuda::LaunchConfig config_for(int64_t blocks, size_t shared_bytes) {
  return {.grid = static_cast<unsigned>(blocks), .block = kThreads, .shared_bytes = shared_bytes};
}

}  // namespace braid::attention::plain
