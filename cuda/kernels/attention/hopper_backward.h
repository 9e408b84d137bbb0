// Backward on Hopper: one walk for heads of 64 and 128; at 256 the sums of one gradient fill the registers, and there is a walk for each.
#pragma once
#include "core/context.h"
#include "cuda/kernels/attention/hopper.h"

namespace braid::attention {

/// Heads of 256.
void hopper_backward_q(Context& ctx, const Problem& problem);
void hopper_backward_kv(Context& ctx, const Problem& problem);

namespace hopper {

__device__ inline float load_float(uint32_t address) {
  float value;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(value) : "r"(address));
  return value;
}

/// s = exp2(s · scale_log2 - lse), a query a column. `stats` is the shared address of this lane's first pair (lse, delta), both float32, a pair a
/// query; lse in base 2.
template <int kQueries>
__device__ void to_probabilities(Sums<kQueries>& s, uint32_t stats, float scale_log2) {
#pragma unroll
  for (int j = 0; j < kQueries / 8; ++j)
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const float lse = load_float(stats + 64 * j + 8 * c);
      s[j][c] = exp2_approx(s[j][c] * scale_log2 - lse);
      s[j][2 + c] = exp2_approx(s[j][2 + c] * scale_log2 - lse);
    }
}

/// s = s · (d_p - delta): probabilities to the gradients of scores before the scale. `stats` as in to_probabilities.
template <int kQueries>
__device__ void to_d_scores(Sums<kQueries>& s, const Sums<kQueries>& d_p, uint32_t stats) {
#pragma unroll
  for (int j = 0; j < kQueries / 8; ++j)
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const float delta = load_float(stats + 64 * j + 8 * c + 4);
      s[j][c] *= d_p[j][c] - delta;
      s[j][2 + c] *= d_p[j][2 + c] - delta;
    }
}

/// As clear_rows, of pairs.
template <int kQueries>
__device__ void clear_pairs(uint32_t stats, int live) {
  const int query = static_cast<int>(threadIdx.x) - 128;
  if (query >= live && query < kQueries) asm volatile("st.shared.v2.u32 [%0], {%1, %1};" ::"r"(stats + query * 8), "r"(0) : "memory");
}

}  // namespace hopper
}  // namespace braid::attention
