// Kernels over [N, D] that also sum columns: a block has some columns and a strip of rows.
#pragma once
#include "cuda/kernels/operands.h"
#include "cuda/runtime/check.h"

namespace braid::cuda {

/// 256 threads: `columns` neighbouring columns (a power of two), the rest of the threads on other rows of the strip. Thread t has column
/// t % columns and rows t / columns, + groups, …; each (strip, group) leaves one partial sum a column.
struct ColumnPlan {
  int64_t N, D;
  int columns, groups;
  int64_t strip_rows, strips;

  ColumnPlan(int64_t num_tokens, int64_t width) : N(num_tokens), D(width), columns(1) {
    while (columns < 256 && columns < D) columns *= 2;
    groups = 256 / columns;
    strip_rows = 32 * groups < 64 ? 64 : 32 * groups;
    strips = (N + strip_rows - 1) / strip_rows;
  }
  int64_t num_partials() const { return strips * groups; }
  LaunchConfig config() const {
    return {.grid = dim3(static_cast<unsigned>(strips), static_cast<unsigned>((D + columns - 1) / columns)), .block = 256};
  }
};

#ifdef __CUDACC__
/// body(element index) for each element of the calling thread's column d, and then the row of partial sums it has to write.
template <class Body>
__device__ inline int64_t walk_column(const ColumnPlan& plan, int64_t d, Body&& body) {
  const int64_t group = threadIdx.x / plan.columns, first = blockIdx.x * plan.strip_rows;
  const int64_t last = min(plan.N, first + plan.strip_rows);
  for (int64_t n = first + group; n < last; n += plan.groups) body(n * plan.D + d);
  return blockIdx.x * plan.groups + group;
}

__device__ inline int64_t column_of_thread(const ColumnPlan& plan) { return int64_t{blockIdx.y} * plan.columns + threadIdx.x % plan.columns; }
#endif

}  // namespace braid::cuda
