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

/// As clear_rows, of pairs.
template <int kQueries>
__device__ void clear_pairs(uint32_t stats, int live) {
  const int query = static_cast<int>(threadIdx.x) - 128;
  if (query >= live && query < kQueries) asm volatile("st.shared.v2.u32 [%0], {%1, %1};" ::"r"(stats + query * 8), "r"(0) : "memory");
}

}  // namespace hopper
}  // namespace braid::attention
