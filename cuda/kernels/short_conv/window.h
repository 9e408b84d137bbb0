// What both directions of the short convolution share: taps and the window of inputs that slides over tokens.
#pragma once
#include "cuda/device/scalar.h"
#include "cuda/device/sequences.h"

namespace braid::device {

struct ConvInputs {
  const void* x;               // [N, D]
  const float* weight;         // [D, W]
  const float* initial_state;  // [S, D, W−1] or null
  const int64_t* cu_seqlens;   // [S+1]
  int64_t N, D, S;
  int W;
  bool silu;
  int head_lanes;  // threads that share a head to be divided by its length, 8, 16 or 32; 0: none is
};

/// Sums over the threads of a head, 8, 16 or 32 neighbours; by whole warps.
struct HeadSums {
  bool of_16, of_32;  // whether a head has so many threads or more

  __device__ explicit HeadSums(int lanes) : of_16(lanes >= 16), of_32(lanes == 32) {}
  __device__ float from_pairs(float x) const {
    x += __shfl_xor_sync(0xffffffffu, x, 2);
    x += __shfl_xor_sync(0xffffffffu, x, 4);
    const float of_8 = __shfl_xor_sync(0xffffffffu, x, 8);
    x += of_16 ? of_8 : 0.0f;
    const float of_other_half = __shfl_xor_sync(0xffffffffu, x, 16);
    return x + (of_32 ? of_other_half : 0.0f);
  }
  __device__ float operator()(float x) const { return from_pairs(x + __shfl_xor_sync(0xffffffffu, x, 1)); }
  /// Two sums at once: even threads add up x, odd ones y.
  __device__ void operator()(float& x, float& y) const {
    const bool odd = threadIdx.x % 2;
    const float sum = from_pairs((odd ? y : x) + __shfl_xor_sync(0xffffffffu, odd ? x : y, 1)), other = __shfl_xor_sync(0xffffffffu, sum, 1);
    x = odd ? other : sum, y = odd ? sum : other;
  }
};
/// Squares that overflow are those of a smaller row instead, beside whose length eps is nothing. A sum that is no number counts as one that
/// overflows.
inline constexpr float kLargestSum = 0x1.fffffep127f, kShrink = 0x1p-70f;

/// Divides a thread's part of a head by the head's length.
template <int width>
__device__ inline void normalize_head(float (&a)[width], int lanes, float eps) {
  const HeadSums head_sum(lanes);
  const auto squares = [&] {
    float sum = 0;
#pragma unroll
    for (int c = 0; c < width; ++c) sum += a[c] * a[c];
    return head_sum(sum);
  };
  float sum = squares();
  if (__any_sync(0xffffffffu, !(sum <= kLargestSum))) {
    const bool huge = !(sum <= kLargestSum);
#pragma unroll
    for (int c = 0; c < width; ++c) a[c] *= huge ? kShrink : 1.0f;
    sum = squares(), eps = huge ? 0.0f : eps;
  }
  const float r = rsqrtf(sum + eps);
#pragma unroll
  for (int c = 0; c < width; ++c) a[c] *= r;
}

/// The gradient through it in place of d: r d − a r³ Σ a d, r the factor.
template <int width>
__device__ inline void normalize_head_backward(float (&a)[width], float (&d)[width], int lanes, float eps) {
  const HeadSums head_sum(lanes);
  float sum, dot, shrink = 1;
  const auto add_up = [&] {
    sum = 0, dot = 0;
#pragma unroll
    for (int c = 0; c < width; ++c) sum += a[c] * a[c], dot += a[c] * d[c];
    head_sum(sum, dot);
  };
  add_up();
  if (__any_sync(0xffffffffu, !(sum <= kLargestSum))) {
    const bool huge = !(sum <= kLargestSum);
    shrink = huge ? kShrink : 1.0f, eps = huge ? 0.0f : eps;
#pragma unroll
    for (int c = 0; c < width; ++c) a[c] *= shrink;
    add_up();
  }
  const float r = rsqrtf(sum + eps), along = r * r * dot;
#pragma unroll
  for (int c = 0; c < width; ++c) d[c] = r * shrink * (d[c] - along * a[c]);
}

/// `taps` weights of `width` channels; a convolution of fewer than `taps` has zeros in front.
template <class T, int taps, int width>
struct ConvWindow {
  float weight[taps][width], x[taps][width];

  __device__ void load_weight(const ConvInputs& in, int64_t d) {
#pragma unroll
    for (int j = 0; j < taps; ++j)
#pragma unroll
      for (int c = 0; c < width; ++c) {
        const int tap = j - (taps - in.W);
        weight[j][c] = tap >= 0 ? in.weight[(d + c) * in.W + tap] : 0.0f;
      }
  }

  /// The inputs before token t; those before the sequence's start come from the initial state.
  __device__ void fill(const ConvInputs& in, const SequenceWalk& sequence, int64_t t, int64_t d) {
#pragma unroll
    for (int j = 0; j < taps - 1; ++j) {
      const int64_t local = t - sequence.begin - (taps - 1) + j, kept = local + in.W - 1;
      if (local >= 0) {
        load(static_cast<const T*>(in.x) + (sequence.begin + local) * in.D + d, x[j]);
        continue;
      }
#pragma unroll
      for (int c = 0; c < width; ++c)
        x[j][c] = in.initial_state && kept >= 0 ? in.initial_state[(sequence.idx * in.D + d + c) * (in.W - 1) + kept] : 0.0f;
    }
  }

  /// z = Σ_j weight_j x_j with `newest` as the last input.
  __device__ void convolve(const float (&newest)[width], float (&z)[width]) {
#pragma unroll
    for (int c = 0; c < width; ++c) {
      x[taps - 1][c] = newest[c];
      z[c] = 0;
#pragma unroll
      for (int j = 0; j < taps; ++j) z[c] += weight[j][c] * x[j][c];
    }
  }
};

/// row_j = row_{j+1}; the last becomes zero.
template <int rows, int width>
__device__ inline void shift(float (&values)[rows][width]) {
#pragma unroll
  for (int j = 0; j < rows; ++j)
#pragma unroll
    for (int c = 0; c < width; ++c) values[j][c] = j + 1 < rows ? values[j + 1 < rows ? j + 1 : j][c] : 0.0f;
}

}  // namespace braid::device
