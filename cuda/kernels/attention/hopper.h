// What the Hopper kernels share: a producer warp that copies, two warpgroups that multiply, and the ring of stages between them.
#pragma once
#include "cuda/device/tma.h"
#include "cuda/device/wgmma.h"
#include "cuda/kernels/attention/softmax.h"

namespace braid::attention::hopper {

using device::WgmmaTile;

constexpr int kConsumers = 256, kThreads = kConsumers + 128;  // two warpgroups, and one whose first thread copies
constexpr int kBox = 64;                                      // tokens of a copy

struct Params {
  CUtensorMap q, k, v, d_o;  // boxes of 64 tokens
  Problem problem;
};

/// Position in a ring of stages. A stage has a barrier that its copies fill and one on which every consumer warp arrives when it is read.
template <int kStages>
struct Ring {
  int stage = 0;
  uint32_t parity = 0;
  __device__ void advance() {
    if (++stage < kStages) return;
    stage = 0, parity ^= 1;
  }
};

/// Starts the copy of kRows tokens from `token` on of head h to the tile.
template <int kRows, int D>
__device__ void copy_tile(const WgmmaTile<kRows, D>& tile, const CUtensorMap& map, uint32_t barrier, int64_t h, int64_t token) {
#pragma unroll
  for (int column = 0; column < D; column += 64)
#pragma unroll
    for (int row = 0; row < kRows; row += kBox)
      device::tma_load(tile.base + column / 64 * tile.kChunkBytes + row * 128, map, barrier, column, static_cast<int>(h),
                       static_cast<int>(token) + row);
}

/// Begins s = (64 rows of left) · right^T.
template <int kLeft, int kColumns, int D>
__device__ void begin_multiply_rows(Sums<kColumns>& s, const WgmmaTile<kLeft, D>& left, int row, const WgmmaTile<kColumns, D>& right) {
#pragma unroll
  for (int step = 0; step < D / 16; ++step) device::wgmma<false>(s, left.by_rows(row, step), right.by_rows(0, step), step > 0);
}

/// Columns of scores as left operands in registers, rounded to bf16.
template <int kInner>
using Rounded = uint32_t[kInner / 16][4];
template <int kInner>
__device__ void round_all(Rounded<kInner>& a, const Sums<kInner>& s) {
#pragma unroll
  for (int step = 0; step < kInner / 16; ++step) rounded<kInner>(a[step], s, step);
}

/// Begins sums += a · right, 128 columns (64 where D is) at a time.
template <int kInner, int D>
__device__ void begin_add_product(Sums<D>& sums, const Rounded<kInner>& a, const WgmmaTile<kInner, D>& right) {
  constexpr int kColumns = D < 128 ? D : 128;
#pragma unroll
  for (int column = 0; column < D; column += kColumns) {
    auto& part = *reinterpret_cast<Sums<kColumns>*>(&sums[column / 8]);
#pragma unroll
    for (int step = 0; step < kInner / 16; ++step) device::wgmma<true>(part, a[step], right.by_columns(step, column), 1);
  }
}

/// One arrival of each consumer warp.
__device__ inline void release(uint32_t barrier) {
  if (threadIdx.x % 32 == 0) device::barrier_arrive(barrier);
}

}  // namespace braid::attention::hopper
