// Kernels over [N, D] that also sum columns: a block has some columns and a strip of rows.
#pragma once
#include "cuda/kernels/operands.h"
#include "cuda/runtime/check.h"

namespace braid::cuda {

/// 256 threads: `columns` packs of `width` neighbouring columns (a power of two), the rest of the threads on other rows of the strip. Thread t
/// has pack t % columns and rows t / columns, + groups, …; each (strip, group) leaves one partial sum a column.
struct ColumnPlan {
  int64_t N, D;
  int width, columns, groups;
  int64_t strip_rows, strips;

  ColumnPlan(int64_t num_tokens, int64_t num_columns, int pack = 1) : N(num_tokens), D(num_columns), width(pack), columns(1) {
    while (columns < 256 && columns * width < D) columns *= 2;
    groups = 256 / columns;
    strip_rows = 32 * groups < 64 ? 64 : 32 * groups;
    strips = (N + strip_rows - 1) / strip_rows;
  }
  int64_t num_partials() const { return strips * groups; }
  LaunchConfig config() const {
    const int64_t block_columns = int64_t{columns} * width;
    return {
        .grid = dim3(static_cast<unsigned>(strips), static_cast<unsigned>((D + block_columns - 1) / block_columns)), .block = 256, .overlaps = true};
  }
};

#ifdef __CUDACC__
/// body(fetch(element index), element index) for each element of the calling thread's column d, and then the row of partial sums it has to
/// write; `ahead` fetches are under way before the first is used.
template <int ahead, class Fetch, class Body>
__device__ inline int64_t walk_column(const ColumnPlan& plan, int64_t d, Fetch&& fetch, Body&& body) {
  const int64_t group = threadIdx.x / plan.columns, first = blockIdx.x * plan.strip_rows;
  const int64_t last = min(plan.N, first + plan.strip_rows), step = plan.groups;
  for (int64_t n = first + group; n < last; n += ahead * step) {
    decltype(fetch(int64_t{0})) fetched[ahead];
#pragma unroll
    for (int i = 0; i < ahead; ++i)
      if (n + i * step < last) fetched[i] = fetch((n + i * step) * plan.D + d);
#pragma unroll
    for (int i = 0; i < ahead; ++i)
      if (n + i * step < last) body(fetched[i], (n + i * step) * plan.D + d);
  }
  return blockIdx.x * plan.groups + group;
}

__device__ inline int64_t column_of_thread(const ColumnPlan& plan) {
  return (int64_t{blockIdx.y} * plan.columns + threadIdx.x % plan.columns) * plan.width;
}
#endif

}  // namespace braid::cuda
