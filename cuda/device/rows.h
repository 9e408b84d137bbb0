// Rows of D elements shared out to groups of threads: thread `lane` of a row's group holds packs lane, lane + group, … of the row.
#pragma once
#include "cuda/device/reduce.h"
#include "cuda/device/scalar.h"

namespace braid::device {

/// At most kPacks packs of kPack elements a thread. Blocks have 256 threads; `blocks` of a forward and `backward_blocks` of a backward should
/// fit on a multiprocessor.
template <int pack, int packs, int blocks, int backward_blocks>
struct RowPlan {
  static constexpr int kThreads = 256, kPack = pack, kPacks = packs, kBlocks = blocks, kBackwardBlocks = backward_blocks;
  static constexpr int kMaxD = kThreads * pack * packs;
};

/// Which rows the calling thread works on: row, row + stride, …, below `rows`; every thread of a block makes the same number of turns.
struct RowWalk {
  int64_t rows, D;
  float inverse_D;
  int group;  // threads a row, a power of two

  __device__ int lane() const { return static_cast<int>(threadIdx.x) & (group - 1); }
  __device__ int64_t stride() const { return int64_t{gridDim.x} * (blockDim.x / group); }
  __device__ int64_t first() const { return int64_t{blockIdx.x} * (blockDim.x / group) + threadIdx.x / group; }
  __device__ int64_t turns() const {
    const int64_t first_of_block = int64_t{blockIdx.x} * (blockDim.x / group);
    return first_of_block < rows ? (rows - first_of_block + stride() - 1) / stride() : 0;
  }
};

/// Sums over a row's group, given to each of its threads. Every thread of the block must take part.
struct RowSum {
  float (*scratch)[8];  // [2][8] of shared memory, aligned to 16 bytes
  int turn = 0;

  __device__ float operator()(float x, int group) {
    for (int offset = 1; offset < min(group, 32); offset *= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
    if (group <= 32) return x;
    const int warp = threadIdx.x / 32, warps = group / 32, first = warp / warps * warps;
    float* sums = scratch[turn];
    turn ^= 1;  // one barrier a sum: who is a sum ahead writes elsewhere
    if (threadIdx.x % 32 == 0) sums[warp] = x;
    __syncthreads();
    if (warps == 8) {
      const float4 low = *reinterpret_cast<const float4*>(sums), high = *reinterpret_cast<const float4*>(sums + 4);
      return ((low.x + low.y) + (low.z + low.w)) + ((high.x + high.y) + (high.z + high.w));
    }
    x = 0;
    for (int i = 0; i < warps; ++i) x += sums[first + i];
    return x;
  }
};

/// One thread's part of a row as it is stored, fetched ahead of its use.
template <class T, class Plan>
struct RowFetch {
  Pack<T, Plan::kPack> packs[Plan::kPacks];

  /// Zeros without a row.
  __device__ void load(const T* row, const RowWalk& walk) {
#pragma unroll
    for (int i = 0; i < Plan::kPacks; ++i) {
      const int64_t column = int64_t{i * walk.group + walk.lane()} * Plan::kPack;
      if (row && column < walk.D) packs[i] = *reinterpret_cast<const Pack<T, Plan::kPack>*>(row + column);
      else packs[i] = {};
    }
  }
  __device__ float at(int i, int j) const { return to_float(packs[i].at[j]); }
};

/// One thread's part of a row, in float; elements past D are zero.
template <class Plan>
struct RowPart {
  float at[Plan::kPacks][Plan::kPack];

  __device__ void load(const float* row, const RowWalk& walk) {
    RowFetch<float, Plan> fetched;
    fetched.load(row, walk);
    each([&](int i, int j) { at[i][j] = fetched.at(i, j); });
  }
  template <class T>
  __device__ void store(T* row, const RowWalk& walk) const {
#pragma unroll
    for (int i = 0; i < Plan::kPacks; ++i) {
      const int64_t column = int64_t{i * walk.group + walk.lane()} * Plan::kPack;
      if (column < walk.D) device::store(row + column, at[i]);
    }
  }

  /// body(element index i, j) over all elements this thread holds.
  template <class Body>
  __device__ static void each(Body&& body) {
#pragma unroll
    for (int i = 0; i < Plan::kPacks; ++i)
#pragma unroll
      for (int j = 0; j < Plan::kPack; ++j) body(i, j);
  }
};

/// Adds up, over the row groups of a block, each thread's column sums, and writes them to partial [D] of this block. `shared` holds
/// kMaxD floats. Every thread of the block must call it.
template <class Plan>
__device__ inline void store_column_sums(const RowPart<Plan>& sums, float* shared, float* partial, const RowWalk& walk) {
  const int group = threadIdx.x / walk.group, groups = blockDim.x / walk.group;
  for (int turn = 0; turn < groups; ++turn) {
    if (turn == group) {
      RowPart<Plan>::each([&](int i, int j) {
        const int column = (i * walk.group + walk.lane()) * Plan::kPack + j;
        shared[column] = turn == 0 ? sums.at[i][j] : shared[column] + sums.at[i][j];
      });
    }
    __syncthreads();
  }
  for (int column = threadIdx.x; column < walk.D; column += Plan::kThreads) partial[column] = shared[column];
}

}  // namespace braid::device
