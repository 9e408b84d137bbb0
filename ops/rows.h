// Loops over the rows of a tensor, cut the same way for any number of threads.
#pragma once
#include <algorithm>
#include <vector>

#include "core/context.h"
#include "ops/eigen.h"

namespace braid {

/// Rows a range should have so that it touches about 16k elements.
inline int64_t rows_per_range(int64_t row_size) { return std::max<int64_t>(1, (1 << 14) / std::max<int64_t>(1, row_size)); }

/// Number of rows of width size(-1).
inline int64_t num_rows(const Tensor& tensor) { return tensor.size(-1) == 0 ? 0 : tensor.numel() / tensor.size(-1); }

/// to = from / sqrt(Σ from² + eps); returns the factor. The squares are of from / max(1, |from|_max), which cannot overflow. `to` may be `from`.
template <class T>
T normalize_row(const T* from, int64_t size, T eps, T* to) {
  const auto x = array(from, size);
  const T largest = std::max(T(1), x.abs().maxCoeff());
  const T length = std::sqrt((x / largest).square().sum() + eps / largest / largest);
  array(to, size) = x / largest / length;
  return 1 / length / largest;
}
/// The gradient through it, in place of d: r (d − n Σ d n), n the row it gave and r the factor.
template <class T>
void normalize_row_backward(const T* n, int64_t size, T r, T* d) {
  const auto row = array(n, size);
  auto to = array(d, size);
  to = r * (to - row * (to * row).sum());
}

/// body(begin, end, partial) over all rows, where `partial` [size] starts at zero in each range; then total += Σ partial, in the
/// order of the ranges: a sum over rows whose bits do not depend on the number of threads.
template <class T, class Body>
void sum_over_rows(Context& ctx, int64_t rows, int64_t grain, int64_t size, T* total, Body&& body) {
  const int64_t num_ranges = (rows + grain - 1) / grain;
  std::vector<T> partials(num_ranges * size, T(0));
  ctx.parallel_for(rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t range = begin; range < end; range += grain) body(range, std::min(end, range + grain), partials.data() + range / grain * size);
  });
  for (int64_t range = 0; range < num_ranges; ++range) array(total, size) += array(partials.data() + range * size, size);
}

}  // namespace braid
