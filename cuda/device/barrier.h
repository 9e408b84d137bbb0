// Barriers in shared memory (mbarrier) on which some threads arrive and others wait, for sm_80 and later.
#pragma once
#include <cstdint>

namespace braid::device {

/// Of an 8-byte barrier in shared memory; one thread calls it before a block barrier.
__device__ inline void barrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
/// What this thread read and wrote before comes before what a thread does that waits for the phase.
__device__ inline void barrier_arrive(uint32_t barrier) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory"); }
/// Waits for the end of the phase with that parity (0, 1, 0, …). A fresh barrier counts as having ended one of parity 1.
__device__ inline void barrier_wait(uint32_t barrier, uint32_t parity) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  asm volatile(
      "{ .reg .pred done; again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1; @done bra.uni out; bra.uni again; out: }" ::"r"(barrier),
      "r"(parity)
      : "memory");
#else
  asm volatile("{ .reg .pred done; again: mbarrier.test_wait.parity.shared::cta.b64 done, [%0], %1; @!done bra again; }" ::"r"(barrier), "r"(parity)
               : "memory");
#endif
}

}  // namespace braid::device
