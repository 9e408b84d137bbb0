// What the Hopper kernels share: a producer warp that copies, two warpgroups that multiply, and the ring of stages between them.
#pragma once
#include "cuda/device/tma.h"
#include "cuda/device/wgmma.h"
#include "cuda/kernels/attention/softmax.h"

namespace braid::attention::hopper {

using device::WgmmaTile;

/// Tokens of a copy: no tile is shorter.
constexpr int box_of(int64_t D) { return D > 128 ? 32 : 64; }
/// Queries of a tile that a walk over queries takes in a turn.
constexpr int queries_of_turn(int64_t D) { return static_cast<int>(64 * 128 / D); }
/// Pairs of a copy, which begins at an even one: addresses that the copy engine reads are multiples of 16.
constexpr int pairs_of(int64_t D) { return queries_of_turn(D) + 2; }

/// The threads of a block: warpgroups that multiply, and one before them whose first thread copies; registers go to where the sums are.
template <int groups>
struct Crew {
  static_assert(groups == 2 || groups == 3);
  static constexpr int kRows = 64 * groups;  // of a product that the block makes
  static constexpr int kWarps = 4 * groups, kThreads = 128 * (groups + 1);
  static constexpr int kCopierRegisters = groups == 2 ? 24 : 32, kRegisters = groups == 2 ? 240 : 160;
};
/// The first row of this warp among the block's; of its warpgroup: warp_row() / 64 * 64.
__device__ inline int warp_row() { return static_cast<int>(threadIdx.x) / 32 * 16 - 64; }

struct Params {
  CUtensorMap q, k, v, d_o;  // boxes of box_of(D) tokens
  CUtensorMap stats;         // boxes of pairs_of(D) of a head
  Problem problem;
  int64_t items;    // tiles × heads; a block works on one after the other
  unsigned* taken;  // items given out beyond the first of every block; zero at the start
};

/// How a block's items go from its copying thread, which takes them, to its consumers: two slots, so that the copies for an item begin while
/// the one before is being finished. Which block works on an item changes nothing in its result.
struct ItemQueue {
  static constexpr int kBytes = 48;
  uint32_t base;
  __device__ uint32_t slot(int i) const { return base + 8 * i; }
  __device__ uint32_t full(int i) const { return base + 16 + 8 * i; }
  __device__ uint32_t read(int i) const { return base + 32 + 8 * i; }

  __device__ void init_barriers(int warps) const {
    for (int i = 0; i < 2; ++i) {
      device::barrier_init(full(i), 1);
      device::barrier_init(read(i), warps);
    }
  }
  /// The copying thread: body(item) for each.
  template <class Body>
  __device__ void give(const Params& params, Body&& body) const {
    unsigned item = blockIdx.x;
    for (int turn = 0;; ++turn) {
      device::barrier_wait(read(turn % 2), turn / 2 % 2 ^ 1);
      asm volatile("st.shared.u32 [%0], %1;" ::"r"(slot(turn % 2)), "r"(item) : "memory");
      device::barrier_arrive(full(turn % 2));
      if (item >= params.items) return;
      const unsigned next = gridDim.x + atomicAdd(params.taken, 1u);
      body(static_cast<int64_t>(item));
      item = next;
    }
  }
  /// Every consumer thread: body(item) for each.
  template <class Body>
  __device__ void take(const Params& params, Body&& body) const {
    for (int turn = 0;; ++turn) {
      device::barrier_wait(full(turn % 2), turn / 2 % 2);
      unsigned item;
      asm volatile("ld.shared.u32 %0, [%1];" : "=r"(item) : "r"(slot(turn % 2)) : "memory");
      __syncwarp();
      if (threadIdx.x % 32 == 0) device::barrier_arrive(read(turn % 2));
      if (item >= params.items) return;
      body(static_cast<int64_t>(item));
    }
  }
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
    for (int row = 0; row < kRows; row += box_of(D))
      device::tma_load(tile.base + column / 64 * tile.kChunkBytes + row * 128, map, barrier, column, static_cast<int>(h),
                       static_cast<int>(token) + row);
}

/// Rows of a tile from `live` on, which follow the sequence, become zero: their weights are, but zero times another sequence's NaN is NaN. All
/// consumers call it between the wait for the copies and the products, then `cleared`. A thread has the same pieces of a tile every time.
template <class Crew, int kRows, int D>
__device__ void clear_rows(const WgmmaTile<kRows, D>& tile, int live) {
#pragma unroll 1
  for (int at = static_cast<int>(threadIdx.x) - 128; at < kRows * D / 8; at += Crew::kThreads - 128)
    if (at / 8 % kRows >= live) asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(tile.base + at * 16), "r"(0) : "memory");
}
template <class Crew>
__device__ void consumers_meet() {
  device::named_barrier_sync(1, Crew::kThreads - 128);
}
template <class Crew>
__device__ void cleared() {
  device::fence_async_proxy();
  consumers_meet<Crew>();
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

/// One arrival of each consumer warp, for the reads of all its lanes.
__device__ inline void release(uint32_t barrier) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) device::barrier_arrive(barrier);
}

}  // namespace braid::attention::hopper
