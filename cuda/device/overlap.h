// Kernels that overlap: with LaunchConfig::overlaps a kernel may begin while the one before it is still at work (programmatic dependent
// launch, compute capability 9.0; elsewhere both functions do nothing and kernels follow each other).
#pragma once

namespace braid::device {

/// Returns when all that earlier kernels wrote is there. Before it an overlapping kernel may read only what no kernel of its graph writes, and
/// must not write.
__device__ inline void wait_for_earlier_kernels() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// Lets the next kernel begin, if it overlaps, as soon as every block has come here; for kernels that do not fill the chip.
__device__ inline void let_next_begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/// The first line of a kernel that reads nothing beforehand.
__device__ inline void begin_overlapping() {
  let_next_begin();
  wait_for_earlier_kernels();
}

}  // namespace braid::device
