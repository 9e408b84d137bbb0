// Hopper's copies by descriptor into shared memory (TMA), the barriers they report to, and how warpgroups share registers.
// Only code for sm_90a may use this header.
#pragma once
#include <cuda.h>

#include <cstdint>

#include "cuda/device/barrier.h"

namespace braid::device {

/// Whether this is the pass that compiles for sm_90a; kernels do nothing in the others.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
inline constexpr bool kHopperCode = true;
#else
inline constexpr bool kHopperCode = false;
#endif

/// After the last barrier_init, by the thread that made them: the copy engine sees them.
__device__ inline void barrier_init_done() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
/// Arrives, and makes the phase wait for that many bytes of copies.
__device__ inline void barrier_expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

/// The box of `map` at (x, y, z), innermost first, to shared memory; outside of the tensor are zeros. One thread calls it.
__device__ inline void tma_load(uint32_t to_shared, const CUtensorMap& map, uint32_t barrier, int x, int y, int z) {
  asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(to_shared),
               "l"(&map), "r"(barrier), "r"(x), "r"(y), "r"(z)
               : "memory");
}
__device__ inline void tma_load(uint32_t to_shared, const CUtensorMap& map, uint32_t barrier, int x, int y) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(to_shared), "l"(&map),
               "r"(barrier), "r"(x), "r"(y)
               : "memory");
}
/// Neighbouring bytes from shared to global memory, in place of what is there or added to it as floats; addresses and size are multiples of 16.
/// One thread calls these, and bulk_commit and the waits, which are of its own copies.
__device__ inline void bulk_store(void* to_global, uint32_t from_shared, uint32_t bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to_global), "r"(from_shared), "r"(bytes) : "memory");
}
__device__ inline void bulk_add(float* to_global, uint32_t from_shared, uint32_t bytes) {
  asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(to_global), "r"(from_shared), "r"(bytes)
               : "memory");
}
__device__ inline void bulk_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
/// Until all of them have read their shared memory.
__device__ inline void bulk_wait_read() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }
/// Until all of them have written.
__device__ inline void bulk_wait() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }
/// What this thread wrote to shared memory is seen by copies and wgmma that come after a barrier behind it.
__device__ inline void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

/// Copies to global memory that come after are ordered behind what this thread has seen there.
__device__ inline void fence_async_proxy_global() { asm volatile("fence.proxy.async.global;" ::: "memory"); }

/// The registers of each thread of this warpgroup from here on; all of its warps call it. Multiples of 8.
template <int registers>
__device__ inline void give_registers_up() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(registers));
}
template <int registers>
__device__ inline void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(registers));
}

/// Named barrier 1 … 15 among `threads` threads (a multiple of 32).
__device__ inline void named_barrier_sync(int id, int threads) { asm volatile("barrier.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }

}  // namespace braid::device
