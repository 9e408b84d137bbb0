// What the loaders of a walk do with a decay per channel, whose chunks need more room than two stages have.
#pragma once
#include "cuda/kernels/gated_delta_rule/walk.h"

namespace braid::delta_cuda {

/// Rows of a part of `decayed`.
template <class Plan>
__device__ inline void load_decayed(const Problem& p, const Lane& x, Decayed part, int64_t chunk, uint32_t to, int thread) {
  const bf16* from = p.decayed + ((part * p.N + x.first(chunk)) * p.HV + x.j) * p.K;
  copy_rows<Plan::K, Plan::kLoaderThreads>(to, from, p.HV * p.K, x.count(chunk), thread);
}

template <class Plan>
__device__ inline uint32_t barrier_of(uint32_t start, Area area) {
  return start + Plan::kBarriers + Plan::kAreaBarriers + 8 * area;
}
template <class Plan>
__device__ inline void leave_early(uint32_t start) {
  if constexpr (Plan::kByChannel) device::barrier_arrive(barrier_of<Plan>(start, kEarly));
}
/// Middle or late has arrived.
template <class Plan>
__device__ inline void reach(uint32_t start, Area area, int64_t step) {
  if constexpr (Plan::kByChannel && Plan::kStages == 1) device::barrier_wait(barrier_of<Plan>(start, area), step % 2);
}

/// What begins the copies of a step.
template <class Early, class Middle, class Late, class Writers>
struct Loads {
  Early early;
  Middle middle;
  Late late;
  Writers writers;
};
/// The loaders' turns.
template <class Plan, class... Load>
__device__ inline void load_areas(uint32_t start, int64_t steps, const Loads<Load...>& loads) {
  static_assert(Plan::kStages <= 2);
  constexpr bool kAhead = Plan::kStages == 2;
  if (steps > 0) loads.early(0);
  if (kAhead && steps > 0) loads.middle(0), loads.late(0);
  for (int64_t step = 0; step < steps; ++step) {
    device::cp_async_commit();
    device::cp_async_wait<0>();
    __syncthreads();
    const bool more = step + 1 < steps;
    if constexpr (kAhead) {
      loads.writers(step);
      if (more) loads.middle(step + 1), loads.late(step + 1);
    } else {
      loads.middle(step);
      device::cp_async_commit();
      loads.late(step);
      device::cp_async_commit();
      loads.writers(step);
      device::cp_async_commit();
      device::cp_async_wait<2>();
      device::barrier_arrive(barrier_of<Plan>(start, kMiddle));
      device::cp_async_wait<1>();
      device::barrier_arrive(barrier_of<Plan>(start, kLate));
    }
    device::barrier_wait(barrier_of<Plan>(start, kEarly), step % 2);
    if (more) loads.early(step + 1);
  }
  device::cp_async_commit();
  device::cp_async_wait<0>();
  __syncthreads();
}

}  // namespace braid::delta_cuda
