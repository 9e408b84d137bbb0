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
};

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
