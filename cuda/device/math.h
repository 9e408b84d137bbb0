// Fast forms of functions that memory-bound kernels evaluate for every element: a few instructions, relative error below 1e-6.
#pragma once

namespace braid::device {

inline constexpr float kLog2E = 1.4426950408889634f;

/// 2^x; 0 where that is no normal number.
__device__ inline float fast_exp2(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
/// e^x; 0 where that is no normal number.
__device__ inline float fast_exp(float x) { return fast_exp2(x * kLog2E); }
/// 1 / x; infinity for what is no normal number, 0 for infinity.
__device__ inline float fast_reciprocal(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

/// 1 / (1 + e^−x); 0 where e^−x is out of range.
__device__ inline float fast_sigmoid(float x) { return fast_reciprocal(1.0f + fast_exp(-x)); }

/// log(1 + x) for −1/2 ≤ x ≤ 1: 2 artanh(t), t = x / (2 + x), as a series in t² ≤ 1/9.
__device__ inline float fast_log1p(float x) {
  const float t = x * fast_reciprocal(2.0f + x), square = t * t;
  float series = 1.0f / 15;
  series = fmaf(series, square, 1.0f / 13);
  series = fmaf(series, square, 1.0f / 11);
  series = fmaf(series, square, 1.0f / 9);
  series = fmaf(series, square, 1.0f / 7);
  series = fmaf(series, square, 1.0f / 5);
  series = fmaf(series, square, 1.0f / 3);
  series = fmaf(series, square, 1.0f);
  return 2.0f * t * series;
}

}  // namespace braid::device
