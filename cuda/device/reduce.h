// Sums and maxima over a warp and over a block, in a fixed order.
#pragma once
#include <cstdint>

namespace braid::device {

__device__ inline float warp_sum(float x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
  return x;
}

__device__ inline float warp_max(float x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, offset));
  return x;
}

/// The sum over all threads of the block, given to each. `scratch` [32] is shared memory, free to reuse after the call. Every
/// thread of the block must call it.
__device__ inline float block_sum(float x, float* scratch) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, num_warps = (blockDim.x + 31) / 32;
  x = warp_sum(x);
  if (lane == 0) scratch[warp] = x;
  __syncthreads();
  x = warp_sum(lane < num_warps ? scratch[lane] : 0.0f);
  __syncthreads();
  return x;
}

}  // namespace braid::device
