// Left operands of the Hopper backward kernels.
#pragma once
#include "core/context.h"
#include "cuda/kernels/attention/hopper.h"

namespace braid::attention {

void hopper_backward_kv(Context& ctx, const Problem& problem);

namespace hopper {

/// A warp's 16 rows of a tile as left operands, for as long as the kernel lives.
template <int D, int kRows>
__device__ void load_left(uint32_t (&a)[D / 16][4], const WgmmaTile<kRows, D>& tile, int row) {
  const int lane = threadIdx.x % 32, r = row + lane % 16;
#pragma unroll
  for (int step = 0; step < D / 16; ++step) {
    const int piece = step % 4 * 2 + lane / 16;
    device::ldmatrix_x4(a[step], tile.base + step / 4 * tile.kChunkBytes + r * 128 + (piece ^ (r & 7)) * 16);
  }
}

/// Begins s = left · right^T.
template <int kColumns, int D>
__device__ void begin_multiply_left(Sums<kColumns>& s, const uint32_t (&left)[D / 16][4], const WgmmaTile<kColumns, D>& right) {
#pragma unroll
  for (int step = 0; step < D / 16; ++step) device::wgmma<false>(s, left[step], right.by_rows(0, step), step > 0);
}

}  // namespace hopper
}  // namespace braid::attention
