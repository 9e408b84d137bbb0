// What the loaders of a walk do with a decay per channel, whose chunks need more room than two stages have.
#pragma once
#include "cuda/kernels/gated_delta_rule/walk.h"

namespace braid::delta_cuda {

/// Rows of a part of `decayed`.
template <class Plan>
__device__ inline void load_decayed(const Problem& p, const Lane& x, Decayed part, int64_t chunk, uint32_t to, int thread) {
  const bf16* from = p.decayed + ((part * p.N + x.first(chunk)) * p.HV + x.j) * p.K;
  copy_rows<Plan::K, kLoaderThreads>(to, from, p.HV * p.K, x.count(chunk), thread);
}
/// The loaders' turns with a decay per channel: what members need first (early) has one place, which they leave half way through a chunk, the
/// rest (late) one place or two. load_early(step), load_late(step), load_writers(step) begin copies, if there is such a step.
enum Area : int { kEarly, kLate };
template <class Plan>
__device__ inline uint32_t barrier_of(uint32_t start, Area area) {
  return start + Plan::kBarriers + 8 * (Plan::kGroups + area);
}
template <class Plan>
__device__ inline void leave(uint32_t start, Area area) {
  if (Plan::kByChannel && (area == kEarly || Plan::kStages == 1)) device::barrier_arrive(barrier_of<Plan>(start, area));
}
template <class Plan, class Early, class Late, class Writers>
__device__ inline void load_areas(uint32_t start, int64_t steps, Early&& load_early, Late&& load_late, Writers&& load_writers) {
  static_assert(Plan::kStages <= 2);
  if (steps > 0) load_early(0), load_late(0);
  for (int64_t step = 0; step < steps; ++step) {
    device::cp_async_commit();
    device::cp_async_wait<0>();
    __syncthreads();
    const bool more = step + 1 < steps;
    load_writers(step);
    if (Plan::kStages == 2 && more) load_late(step + 1);
    device::barrier_wait(barrier_of<Plan>(start, kEarly), step % 2);
    if (more) load_early(step + 1);
    if (Plan::kStages == 1) device::barrier_wait(barrier_of<Plan>(start, kLate), step % 2);
    if (Plan::kStages == 1 && more) load_late(step + 1);
  }
  device::cp_async_commit();
  device::cp_async_wait<0>();
  __syncthreads();
}

}  // namespace braid::delta_cuda
