// The running softmax of a warp's 16 rows, and the masks; scores in the layout of an mma product.
#pragma once
#include "cuda/kernels/attention/mma_tiles.h"

namespace braid::attention {

/// 2^x in one instruction; results below 2^-126 are zero.
__device__ inline float exp2_approx(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

/// Row i of this thread: 0 is lane / 4 of its warp's 16 rows, 1 is lane / 4 + 8.
struct RunningSoftmax {
  float m[2] = {-INFINITY, -INFINITY};  // highest score so far, not scaled
  float l[2] = {0, 0};                  // this thread's part of the sum of exp(scale (s − m))

  /// s becomes exp(scale (s − m)) with the new m; shrink is what earlier sums must be multiplied by. scale_log2 = scale · log2 e.
  template <int kColumns>
  __device__ void update(Sums<kColumns>& s, float scale_log2, float (&shrink)[2]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float highest = m[i];
#pragma unroll
      for (int j = 0; j < kColumns / 8; ++j) highest = fmaxf(highest, fmaxf(s[j][2 * i], s[j][2 * i + 1]));
      highest = quad_max(highest);
      const float base = highest == -INFINITY ? 0.0f : highest * scale_log2;  // no key seen yet: −inf − (−inf) would be NaN
      shrink[i] = exp2_approx(m[i] * scale_log2 - base);
      m[i] = highest;
      float sum = 0;
#pragma unroll
      for (int j = 0; j < kColumns / 8; ++j) {
        s[j][2 * i] = exp2_approx(s[j][2 * i] * scale_log2 - base);
        s[j][2 * i + 1] = exp2_approx(s[j][2 * i + 1] * scale_log2 - base);
        sum += s[j][2 * i] + s[j][2 * i + 1];
      }
      l[i] = l[i] * shrink[i] + sum;
    }
  }
};

/// Query positions [first, last] see all of the keys [key, key + count): nothing needs a mask.
__device__ inline bool all_visible(const Problem& p, int64_t first_position, int64_t last_position, int64_t key, int64_t count) {
  return key + count - 1 <= first_position && (p.window == 0 || key > last_position - p.window);
}

/// Whether some query of a tile does not see some key of a tile; the first query is `ahead` positions after the first key.
__device__ inline bool needs_mask(int ahead, int queries, int keys, int window) {
  return ahead < keys - 1 || (window > 0 && ahead + queries - 1 >= window);
}

/// Scores with queries as rows: `hidden` where the query at `position` (of row 0, relative to the first key) does not see the column's key.
template <int kColumns>
__device__ void mask_keys(Sums<kColumns>& s, int position, int window, float hidden) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int last = position + lane / 4 + 8 * i, first = window > 0 ? last - window : -1;  // keys in (first, last]
#pragma unroll
    for (int j = 0; j < kColumns / 8; ++j)
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int key = 8 * j + 2 * (lane % 4) + c;
        if (key > last || key <= first) s[j][2 * i + c] = hidden;
      }
  }
}

/// Scores with keys as rows: `hidden` where the query of the column does not see the key, and in the columns from `count` on. `key` is that
/// of row 0, relative to the position of column 0.
template <int kColumns>
__device__ void mask_queries(Sums<kColumns>& s, int key, int window, int count, float hidden) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int first = key + lane / 4 + 8 * i, end = window > 0 ? min(count, first + window) : count;  // queries in [first, end)
#pragma unroll
    for (int j = 0; j < kColumns / 8; ++j)
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int query = 8 * j + 2 * (lane % 4) + c;
        if (query < first || query >= end) s[j][2 * i + c] = hidden;
      }
  }
}

}  // namespace braid::attention
