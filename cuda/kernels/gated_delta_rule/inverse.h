// A = (I + L)^{-1} of a chunk, in float32 in shared memory, by a whole block.
#pragma once
#include "cuda/kernels/gated_delta_rule/chunks.h"
#include "cuda/kernels/gated_delta_rule/tiles.h"

namespace braid::delta_cuda {

inline constexpr int kPitch = kChunk + 4;  // floats of a row of a square: rows are 16-byte aligned and start four banks apart
inline constexpr int kInverters = 128;     // threads that share the work

struct Squares {
  float lower[kChunk][kPitch];    // L
  float inverse[kChunk][kPitch];  // A
  float product[kChunk / 2][kChunk / 2 + 4];
};

/// sum = a b for a thread's `width` columns of a row, b [size, …].
template <int size, int width, class A, class B>
__device__ inline void row_product(float (&sum)[width], const A* a, const B* b, int pitch) {
#pragma unroll
  for (int c = 0; c < width; ++c) sum[c] = 0;
#pragma unroll 4
  for (int l = 0; l < size; ++l) {
    const float factor = a[l];
#pragma unroll
    for (int c = 0; c < width; c += 4) {
      const float4 row = *reinterpret_cast<const float4*>(b + l * pitch + c);
      sum[c] += factor * row.x, sum[c + 1] += factor * row.y, sum[c + 2] += factor * row.z, sum[c + 3] += factor * row.w;
    }
  }
}

/// Blocks of 16 by substitution, then [[A1, 0], [−A2 L21 A1, A2]] for blocks of 32 and of 64. Begins after and ends with a barrier.
template <int threads>
__device__ inline void invert(Squares& squares) {
  static_assert(threads >= kInverters);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const bool works = threads == kInverters || threadIdx.x < kInverters;
  auto &lower = squares.lower, &inverse = squares.inverse;
  auto& product = squares.product;
  for (int i = threadIdx.x; i < kChunk * kPitch; i += threads) (&inverse[0][0])[i] = 0;
  __syncthreads();
  if (works && lane < 16) {
    const int start = 16 * warp;
    float x[16];
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      float sum = i == lane ? 1.0f : 0.0f;
#pragma unroll
      for (int l = 0; l < i; ++l) sum -= lower[start + i][start + l] * x[l];
      x[i] = sum;
      inverse[start + i][start + lane] = sum;
    }
  }
  __syncthreads();
  {
    const int start = threadIdx.x / 64 * 32, row = threadIdx.x % 64 / 4, column = threadIdx.x % 4 * 4;
    float sum[4];
    if (works) {
      row_product<16>(sum, &lower[start + 16 + row][start], &inverse[start][start + column], kPitch);
      *reinterpret_cast<float4*>(&product[start / 2 + row][column]) = make_float4(sum[0], sum[1], sum[2], sum[3]);
    }
    __syncthreads();
    if (works) {
      row_product<16>(sum, &inverse[start + 16 + row][start + 16], &product[start / 2][column], kChunk / 2 + 4);
      *reinterpret_cast<float4*>(&inverse[start + 16 + row][start + column]) = make_float4(-sum[0], -sum[1], -sum[2], -sum[3]);
    }
  }
  __syncthreads();
  const int row = threadIdx.x / 4, column = threadIdx.x % 4 * 8;
  float sum[8];
  if (works) {
    row_product<32>(sum, &lower[32 + row][0], &inverse[0][column], kPitch);
#pragma unroll
    for (int c = 0; c < 8; ++c) product[row][column + c] = sum[c];
  }
  __syncthreads();
  if (works) {
    row_product<32>(sum, &inverse[32 + row][32], &product[0][column], kChunk / 2 + 4);
#pragma unroll
    for (int c = 0; c < 8; ++c) inverse[32 + row][column + c] = -sum[c];
  }
  __syncthreads();
}

/// A square's lower triangle as two: rounded, and what rounding left over.
template <int threads>
__device__ inline void store_split(const float (&square)[kChunk][kPitch], bf16* to) {
#pragma unroll
  for (int i = threadIdx.x; i < kChunk * kChunk / 8; i += threads) {
    const int row = i / 8, column = i % 8 * 8;
    if (column / 16 > row / 16) continue;
    uint4 rounded, rest;
    const float* x = &square[row][column];
    const auto split = [&](uint32_t& high, uint32_t& low, int c) {
      high = device::pack_bf16(x[c], x[c + 1]);
      low = rest_of(high, x[c], x[c + 1]);
    };
    split(rounded.x, rest.x, 0), split(rounded.y, rest.y, 2), split(rounded.z, rest.z, 4), split(rounded.w, rest.w, 6);
    char* at = reinterpret_cast<char*>(to) + triangle_offset(row, column);
    *reinterpret_cast<uint4*>(at) = rounded;
    *reinterpret_cast<uint4*>(at + kTriangleBytes) = rest;
  }
}

}  // namespace braid::delta_cuda
