#include "ops/gemm.h"

#include <algorithm>

#include "ops/eigen.h"

namespace braid {
namespace {

/// A factor: row-major storage with rows `stride` apart, read transposed or not.
template <class T>
struct Factor {
  const T* data;
  int64_t stride;
  bool transposed;

  Factor from(int64_t row, int64_t col) const { return {data + (transposed ? col * stride + row : row * stride + col), stride, transposed}; }
};

/// c[m, n] with rows `stride` apart; scale(beta) before products are added.
template <class T>
struct Target {
  T* data;
  int64_t stride;
  T alpha, beta;

  Target from(int64_t row, int64_t col) const { return {data + row * stride + col, stride, alpha, beta}; }
};

struct Sizes {
  int64_t m, n, k;
};

/// How a product is cut into tiles of `step`, a function of its sizes only.
struct Cut {
  Sizes step;

  static int64_t count(int64_t size, int64_t step) { return (size + step - 1) / step; }
  static int64_t even_step(int64_t size, int64_t parts, int64_t multiple) {
    return std::min(size, count(count(size, std::max<int64_t>(1, parts)), multiple) * multiple);
  }
};

constexpr int64_t kFewRows = 16;                                                // up to here a product reads b once and packs nothing
constexpr int64_t kMinWork = 1 << 19;                                           // multiply-adds worth a range of their own (some 15 microseconds)
constexpr int64_t kWantedTiles = 8;                                             // enough to keep cores busy to the end
constexpr int64_t kPanelMultiple = 48;                                          // columns of Eigen's widest register tile
constexpr int64_t kTileCols = 528, kTileRows = 256, kTileRowsTransposed = 384;  // measured: a tile packs its factors again; here it costs under 5 %

Cut choose_cut(const Sizes& size, bool transpose_a) {
  const auto [m, n, k] = size;
  const int64_t affordable = m * n / kMinWork * k + m * n % kMinWork * k / kMinWork;
  Cut cut{size};
  if (affordable < 2) return cut;
  cut.step.m = Cut::even_step(m, Cut::count(m, transpose_a ? kTileRowsTransposed : kTileRows), 16);
  cut.step.n = Cut::even_step(n, Cut::count(n, kTileCols), kPanelMultiple);
  const int64_t tiles = Cut::count(m, cut.step.m) * Cut::count(n, cut.step.n);
  const int64_t more = std::min(kWantedTiles, affordable) / tiles;
  if (more < 2) return cut;
  const int64_t min_depth = m * n <= (1 << 14) ? 256 : 512;  // so that adding up partial products stays cheap
  if (k >= 2 * min_depth && tiles == 1) {
    cut.step.k = Cut::even_step(k, std::min(more, k / min_depth), 8);
  } else if (m >= 64) {
    cut.step.m = Cut::even_step(m, std::min(m / 32, Cut::count(m, cut.step.m) * more), 16);
  } else {
    cut.step.n = Cut::even_step(n, Cut::count(n, cut.step.n) * more, kPanelMultiple);
  }
  return cut;
}

/// One tile, on the calling thread.
template <class T>
void multiply(const Sizes& size, const Factor<T>& a, const Factor<T>& b, const Target<T>& c) {
  auto target = matrix(c.data, size.m, size.n, c.stride);
  if (c.beta == T(0)) target.setZero();
  else if (c.beta != T(1)) target *= c.beta;
  if (size.k == 0) return;
  const auto left = matrix(a.data, a.transposed ? size.k : size.m, a.transposed ? size.m : size.k, a.stride);
  const auto right = matrix(b.data, b.transposed ? size.n : size.k, b.transposed ? size.k : size.n, b.stride);
  if (a.transposed && b.transposed) target.noalias() += c.alpha * (left.transpose() * right.transpose());
  else if (a.transposed) target.noalias() += c.alpha * (left.transpose() * right);
  else if (b.transposed) target.noalias() += c.alpha * (left * right.transpose());
  else target.noalias() += c.alpha * (left * right);
}

/// c[Rows, Cols] from rows of a and rows of b, dot product by dot product in registers.
template <class T, int Rows, int Cols>
void dot_block(int64_t k, const Factor<T>& a, const Factor<T>& b, const Target<T>& c) {
  constexpr int kLanes = 16;
  using Lanes = Eigen::Array<T, kLanes, 1>;
  Lanes sum[Rows][Cols];
  for (auto& row : sum)
    for (Lanes& lanes : row) lanes.setZero();
  int64_t i = 0;
  for (; i + kLanes <= k; i += kLanes) {
    for (int col = 0; col < Cols; ++col) {
      const Lanes weight = Eigen::Map<const Lanes>(b.data + col * b.stride + i);
      for (int row = 0; row < Rows; ++row) sum[row][col] += Eigen::Map<const Lanes>(a.data + row * a.stride + i) * weight;
    }
  }
  for (int row = 0; row < Rows; ++row) {
    for (int col = 0; col < Cols; ++col) {
      T dot = sum[row][col].sum();
      for (int64_t j = i; j < k; ++j) dot += a.data[row * a.stride + j] * b.data[col * b.stride + j];
      T& to = c.data[row * c.stride + col];
      to = c.beta == T(0) ? c.alpha * dot : c.alpha * dot + c.beta * to;
    }
  }
}

template <class T, int Rows>
void dot_rows(int64_t n, int64_t k, const Factor<T>& a, const Factor<T>& b, const Target<T>& c) {
  int64_t col = 0;
  for (; col + 4 <= n; col += 4) dot_block<T, Rows, 4>(k, a, b.from(0, col), c.from(0, col));
  for (; col < n; ++col) dot_block<T, Rows, 1>(k, a, b.from(0, col), c.from(0, col));
}

/// A few rows of a times bᵀ (decoding): every range reads its own rows of b, from memory once.
template <class T>
void multiply_few_rows(Context& ctx, const Sizes& size, const Factor<T>& a, const Factor<T>& b, const Target<T>& c) {
  const int64_t cols_in_cache = std::max<int64_t>(4, (1 << 14) / std::max<int64_t>(1, size.k) / 4 * 4);
  const int64_t grain = std::max(cols_in_cache, Cut::count(kMinWork / 4, size.m * std::max<int64_t>(1, size.k) * 4) * 4);
  ctx.parallel_for(size.n, grain, [&](int64_t begin, int64_t end) {
    for (int64_t col = begin; col < end; col += cols_in_cache) {
      const int64_t n = std::min(end - col, cols_in_cache);
      const Factor<T> weight = b.from(0, col);
      int64_t row = 0;
      for (; row + 4 <= size.m; row += 4) dot_rows<T, 4>(n, size.k, a.from(row, 0), weight, c.from(row, col));
      for (; row < size.m; ++row) dot_rows<T, 1>(n, size.k, a.from(row, 0), weight, c.from(row, col));
    }
  });
}

/// Partial products over ranges of k, added up in their order.
template <class T>
void multiply_split_depth(Context& ctx, const Sizes& size, int64_t step, const Factor<T>& a, const Factor<T>& b, const Target<T>& c) {
  const int64_t parts = Cut::count(size.k, step);
  Matrix<T> partial(parts * size.m, size.n);
  ctx.parallel_for(parts, 1, [&](int64_t part, int64_t) {
    const int64_t k = part * step;
    const Target<T> to{partial.data() + part * size.m * size.n, size.n, T(1), T(0)};
    multiply<T>({size.m, size.n, std::min(step, size.k - k)}, a.from(0, k), b.from(k, 0), to);
  });
  const int64_t rows = std::max<int64_t>(1, (1 << 14) / size.n);
  ctx.parallel_for(size.m, rows, [&](int64_t begin, int64_t end) {
    auto sum = partial.middleRows(begin, end - begin);
    for (int64_t part = 1; part < parts; ++part) sum += partial.middleRows(part * size.m + begin, end - begin);
    auto target = matrix(c.data + begin * c.stride, end - begin, size.n, c.stride);
    if (c.beta == T(0)) target = c.alpha * sum;
    else target = c.alpha * sum + c.beta * target;
  });
}

}  // namespace

template <class T>
void gemm(Context& ctx, bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, T alpha, const T* a, int64_t lda, const T* b,
          int64_t ldb, T beta, T* c, int64_t ldc) {
  if (m == 0 || n == 0) return;
  const Sizes size{m, n, k};
  const Factor<T> left{a, lda, transpose_a}, right{b, ldb, transpose_b};
  const Target<T> target{c, ldc, alpha, beta};
  if (m <= kFewRows && transpose_b && !transpose_a) return multiply_few_rows(ctx, size, left, right, target);
  const Sizes step = choose_cut(size, transpose_a).step;
  if (step.k < k) return multiply_split_depth(ctx, size, step.k, left, right, target);
  const int64_t tiles_across = Cut::count(n, step.n), tiles = Cut::count(m, step.m) * tiles_across;
  ctx.parallel_for(tiles, 1, [&](int64_t tile, int64_t) {
    const int64_t row = tile / tiles_across * step.m, col = tile % tiles_across * step.n;
    multiply<T>({std::min(step.m, m - row), std::min(step.n, n - col), k}, left.from(row, 0), right.from(0, col), target.from(row, col));
  });
}

template void gemm(Context&, bool, bool, int64_t, int64_t, int64_t, float, const float*, int64_t, const float*, int64_t, float, float*, int64_t);
template void gemm(Context&, bool, bool, int64_t, int64_t, int64_t, double, const double*, int64_t, const double*, int64_t, double, double*, int64_t);

}  // namespace braid
