// Small matrix products of the chunked recurrences: operands that lie in the first-level cache, padded to whole tiles.
#pragma once
#include <algorithm>
#include <cstring>
#include <utility>

#include "ops/eigen.h"

namespace braid::tiles {

/// Tokens that are worked on at once, and the multiple that every width is padded to with zeros: no product has an edge.
inline constexpr int64_t kTile = 16;

constexpr int64_t padded(int64_t extent) { return (extent + kTile - 1) / kTile * kTile; }

/// The widest vector register of the machine compiled for, as a type with arithmetic.
template <class T>
struct PackOf {
  typedef T type __attribute__((vector_size(__BIGGEST_ALIGNMENT__)));
};
template <class T>
using Pack = typename PackOf<T>::type;
template <class T>
inline constexpr int kLanes = __BIGGEST_ALIGNMENT__ / sizeof(T);

template <class T>
Pack<T> load(const T* from) {
  Pack<T> pack;
  std::memcpy(&pack, from, sizeof(pack));
  return pack;
}
template <class T>
void store(T* to, Pack<T> pack) {
  std::memcpy(to, &pack, sizeof(pack));
}

/// The left operand of a product, or its transpose: element (i, p) is data[i · row + p · col].
template <class T>
struct Left {
  const T* data;
  int64_t row, col;
};
template <class T>
Left<T> left(const Matrix<T>& m) {
  return {m.data(), m.cols(), 1};
}
template <class T>
Left<T> left_transposed(const Matrix<T>& m) {
  return {m.data(), 1, m.cols()};
}

/// What becomes of the old values of row i: they are multiplied by factors[i · stride]; without factors they are forgotten.
template <class T>
struct Keep {
  const T* factors = nullptr;
  int64_t stride = 0;
};
template <class T>
inline constexpr T kOne = 1;
template <class T>
inline constexpr Keep<T> kAdd = {&kOne<T>, 0};

/// C [R, J packs] = keep C + A B with C in registers.
template <int R, int J, class T>
void multiply_block(int64_t depth, Left<T> a, const T* b, int64_t ldb, T* c, int64_t ldc, Keep<T> keep) {
  Pack<T> sum[R][J];
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < J; ++j) sum[r][j] = keep.factors ? keep.factors[r * keep.stride] * load(c + r * ldc + j * kLanes<T>) : Pack<T>{};
  for (int64_t p = 0; p < depth; ++p) {
    Pack<T> row[J];
    for (int j = 0; j < J; ++j) row[j] = load(b + p * ldb + j * kLanes<T>);
    for (int r = 0; r < R; ++r) {
      const T factor = a.data[r * a.row + p * a.col];
      for (int j = 0; j < J; ++j) sum[r][j] += factor * row[j];
    }
  }
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < J; ++j) store(c + r * ldc + j * kLanes<T>, sum[r][j]);
}

template <int J, class T>
void multiply_columns(int64_t rows, int64_t depth, Left<T> a, const T* b, int64_t ldb, T* c, int64_t ldc, Keep<T> keep) {
  constexpr int kRegisters = __BIGGEST_ALIGNMENT__ == 64 ? 16 : 8;  // half of what there are
  constexpr int R = kRegisters / J;
  for (int64_t i = 0; i < rows; i += R)
    multiply_block<R, J>(depth, Left<T>{a.data + i * a.row, a.row, a.col}, b, ldb, c + i * ldc, ldc,
                         Keep<T>{keep.factors ? keep.factors + i * keep.stride : nullptr, keep.stride});
}

/// C [rows, cols] = keep C + A [rows, depth] B [depth, cols]; rows and cols are multiples of kTile.
template <class T>
void multiply(int64_t rows, int64_t cols, int64_t depth, Left<T> a, const T* b, T* c, Keep<T> keep = {}) {
  constexpr int kWide = __BIGGEST_ALIGNMENT__ == 64 ? 4 : 2;
  constexpr int kNarrow = std::min<int>(kWide, kTile / kLanes<T>);  // divides every width
  int64_t j = 0;
  for (; j + kWide * kLanes<T> <= cols; j += kWide * kLanes<T>) multiply_columns<kWide>(rows, depth, a, b + j, cols, c + j, cols, keep);
  for (; j < cols; j += kNarrow * kLanes<T>) multiply_columns<kNarrow>(rows, depth, a, b + j, cols, c + j, cols, keep);
}

template <class T, size_t... I>
void interleave(Pack<T>& low, Pack<T>& high, Pack<T> a, Pack<T> b, std::index_sequence<I...>) {
  constexpr int L = kLanes<T>;
  low = __builtin_shufflevector(a, b, (I / 2 + I % 2 * L)...);
  high = __builtin_shufflevector(a, b, (L / 2 + I / 2 + I % 2 * L)...);
}

/// One square of kLanes rows: log2(kLanes) perfect shuffles of the rows seen as one array swap the row and the lane bits of an index.
template <class T>
void transpose_square(const T* from, int64_t from_stride, T* to, int64_t to_stride) {
  constexpr int L = kLanes<T>;
  Pack<T> rows[L], shuffled[L];
  for (int i = 0; i < L; ++i) rows[i] = load(from + i * from_stride);
  for (int step = 1; step < L; step *= 2) {
    for (int i = 0; i < L / 2; ++i) interleave<T>(shuffled[2 * i], shuffled[2 * i + 1], rows[i], rows[i + L / 2], std::make_index_sequence<L>());
    for (int i = 0; i < L; ++i) rows[i] = shuffled[i];
  }
  for (int i = 0; i < L; ++i) store(to + i * to_stride, rows[i]);
}

/// to [cols, rows] = from [rows, cols]ᵀ; both multiples of kTile.
template <class T>
void transpose(int64_t rows, int64_t cols, const T* from, T* to) {
  for (int64_t i = 0; i < rows; i += kLanes<T>)
    for (int64_t j = 0; j < cols; j += kLanes<T>) transpose_square(from + i * cols + j, cols, to + j * rows + i, rows);
}

/// tile [kTile, width] = `rows` rows of `cols` elements, `stride` apart, times factor; zero beside and below them.
template <class T>
void load_tile(Matrix<T>& tile, const T* from, int64_t stride, int64_t rows, int64_t cols, T factor = T(1)) {
  if (rows < tile.rows() || cols < tile.cols()) tile.setZero();
  tile.topLeftCorner(rows, cols) = factor * matrix(from, rows, cols, stride);
}

}  // namespace braid::tiles
