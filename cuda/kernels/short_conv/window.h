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

/// Sums over the `lanes` threads of a head; by whole warps.
__device__ inline float head_sum(float x, int lanes) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    const float other = __shfl_xor_sync(0xffffffffu, x, offset);
    x += offset < lanes ? other : 0.0f;
  }
  return x;
}

/// Divides a thread's part of a head by the head's length; returns the factor. Squares that overflow are those of a smaller row instead.
template <int width>
__device__ inline float normalize_head(float (&a)[width], int lanes, float eps) {
  const auto squares = [&](float factor) {
    float sum = 0;
#pragma unroll
    for (int c = 0; c < width; ++c) sum += (a[c] * factor) * (a[c] * factor);
    return head_sum(sum, lanes);
  };
  float sum = squares(1.0f), factor = 1.0f;
  if (__any_sync(0xffffffffu, !(sum <= 0x1.fffffep127f))) {
    const bool huge = !(sum <= 0x1.fffffep127f);
    factor = huge ? 0x1p-70f : 1.0f, eps = huge ? 0.0f : eps;
    sum = squares(factor);
  }
  const float r = rsqrtf(sum + eps);
#pragma unroll
  for (int c = 0; c < width; ++c) a[c] = a[c] * factor * r;
  return factor * r;
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
