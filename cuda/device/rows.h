// Rows of D elements shared out to groups of threads: thread `lane` of a row's group holds packs lane, lane + group, … of the row.
#pragma once
#include "cuda/device/reduce.h"
#include "cuda/device/scalar.h"

namespace braid::device {

/// kGroup threads a row, packs of kPack elements, at most kPacks of them a thread. Blocks have 256 threads.
template <int group, int pack, int packs>
struct RowPlan {
  static constexpr int kThreads = 256;
  static constexpr int kGroup = group, kPack = pack, kPacks = packs;
  static constexpr int kRowsPerBlock = kThreads / group;
  static constexpr int kMaxD = group * pack * packs;
};

/// The sum over a row's group, given to each of its threads. Every thread of the block must call it.
template <class Plan>
__device__ inline float row_sum(float x, float* scratch) {
  if constexpr (Plan::kGroup == Plan::kThreads) {
    return block_sum(x, scratch);
  } else {
#pragma unroll
    for (int offset = Plan::kGroup / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
    return x;
  }
}

/// One thread's part of a row, in float; elements past D are zero.
template <class Plan>
struct RowPart {
  float at[Plan::kPacks][Plan::kPack];

  template <class T>
  __device__ void load(const T* row, int64_t D, int lane) {
#pragma unroll
    for (int i = 0; i < Plan::kPacks; ++i) {
      const int64_t column = int64_t{i * Plan::kGroup + lane} * Plan::kPack;
      if (row && column < D) {
        device::load(row + column, at[i]);
      } else {
#pragma unroll
        for (int j = 0; j < Plan::kPack; ++j) at[i][j] = 0;
      }
    }
  }

  template <class T>
  __device__ void store(T* row, int64_t D, int lane) const {
#pragma unroll
    for (int i = 0; i < Plan::kPacks; ++i) {
      const int64_t column = int64_t{i * Plan::kGroup + lane} * Plan::kPack;
      if (column < D) device::store(row + column, at[i]);
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
__device__ inline void store_column_sums(const RowPart<Plan>& sums, float* shared, float* partial, int64_t D) {
  const int lane = threadIdx.x % Plan::kGroup, group = threadIdx.x / Plan::kGroup;
  for (int turn = 0; turn < Plan::kRowsPerBlock; ++turn) {
    if (turn == group) {
      RowPart<Plan>::each([&](int i, int j) {
        const int column = (i * Plan::kGroup + lane) * Plan::kPack + j;
        shared[column] = turn == 0 ? sums.at[i][j] : shared[column] + sums.at[i][j];
      });
    }
    __syncthreads();
  }
  for (int column = threadIdx.x; column < D; column += Plan::kThreads) partial[column] = shared[column];
}

}  // namespace braid::device
