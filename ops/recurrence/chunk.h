// Small matrix products on the scratch of a chunk: row-major, all extents multiples of 16 (padded with zeros), no allocation.
#pragma once
#include <cstdint>
#include <cstring>

#include "ops/recurrence/tiles.h"

namespace braid::chunk {

inline constexpr int64_t kBlock = 16;  // rows of a triangular block

#ifdef __AVX512F__
inline constexpr int kVectorBytes = 64, kTileRows = 8;
#else
inline constexpr int kVectorBytes = 32, kTileRows = 4;
#endif

template <class T>
struct WideOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
};

/// The left operand of a product: element (i, j) at data[i · row + j · col], so that a transposed one costs nothing.
template <class T>
struct Left {
  const T* data;
  int64_t row, col;
};
template <class T>
Left<T> plain(const T* data, int64_t stride) {
  return {data, stride, 1};
}
template <class T>
Left<T> transposed(const T* data, int64_t stride) {
  return {data, 1, stride};
}

/// What becomes of the result: c = ab, c += ab, c −= ab.
enum class Store : uint8_t { set, add, subtract };

/// One tile of the result, kept in registers: c [kTileRows, Vectors whole vectors].
template <class T, int Vectors>
void multiply_tile(int64_t depth, const Left<T>& a, const T* b, int64_t b_stride, T* c, int64_t c_stride, Store store) {
  using Wide = typename WideOf<T>::type;
  constexpr int kWidth = kVectorBytes / sizeof(T);
  Wide sum[kTileRows][Vectors] = {};
  for (int64_t k = 0; k < depth; ++k) {
    Wide right[Vectors];
    for (int v = 0; v < Vectors; ++v) std::memcpy(&right[v], b + k * b_stride + v * kWidth, sizeof(Wide));
    for (int i = 0; i < kTileRows; ++i)
      for (int v = 0; v < Vectors; ++v) sum[i][v] += a.data[i * a.row + k * a.col] * right[v];
  }
  for (int i = 0; i < kTileRows; ++i) {
    for (int v = 0; v < Vectors; ++v) {
      T* to = c + i * c_stride + v * kWidth;
      Wide value = sum[i][v];
      if (store != Store::set) {
        std::memcpy(&value, to, sizeof(Wide));
        value = store == Store::add ? value + sum[i][v] : value - sum[i][v];
      }
      std::memcpy(to, &value, sizeof(Wide));
    }
  }
}

/// c [rows, cols] (=, +=, −=) a [rows, depth] · b [depth, cols].
template <class T>
void multiply(int64_t rows, int64_t cols, int64_t depth, const Left<T>& a, const T* b, int64_t b_stride, T* c, int64_t c_stride, Store store) {
  constexpr int64_t kWidth = kVectorBytes / sizeof(T);
  for (int64_t j = 0; j < cols;) {
    const bool two = j + 2 * kWidth <= cols;
    for (int64_t i = 0; i < rows; i += kTileRows) {
      const Left<T> tile{a.data + i * a.row, a.row, a.col};
      if (two) multiply_tile<T, 2>(depth, tile, b + j, b_stride, c + i * c_stride + j, c_stride, store);
      else multiply_tile<T, 1>(depth, tile, b + j, b_stride, c + i * c_stride + j, c_stride, store);
    }
    j += two ? 2 * kWidth : kWidth;
  }
}

/// The same with a [rows, rows] lower triangular (zeros inside its diagonal blocks; blocks above them are not read).
template <class T>
void multiply_lower(int64_t rows, int64_t cols, const Left<T>& a, const T* b, int64_t b_stride, T* c, int64_t c_stride, Store store) {
  for (int64_t i = 0; i < rows; i += kBlock)
    multiply(kBlock, cols, i + kBlock, Left<T>{a.data + i * a.row, a.row, a.col}, b, b_stride, c + i * c_stride, c_stride, store);
}

/// The same with a [rows, rows] upper triangular (blocks below the diagonal are not read).
template <class T>
void multiply_upper(int64_t rows, int64_t cols, const Left<T>& a, const T* b, int64_t b_stride, T* c, int64_t c_stride, Store store) {
  for (int64_t i = 0; i < rows; i += kBlock) {
    const Left<T> tail{a.data + i * (a.row + a.col), a.row, a.col};
    multiply(kBlock, cols, rows - i, tail, b + i * b_stride, b_stride, c + i * c_stride, c_stride, store);
  }
}

/// Only the lower part of c [rows, rows], in whole blocks of 16 (blocks above the diagonal are not written).
template <class T>
void multiply_into_lower(int64_t rows, int64_t depth, const Left<T>& a, const T* b, int64_t b_stride, T* c, int64_t c_stride, Store store) {
  for (int64_t i = 0; i < rows; i += kBlock)
    multiply(kBlock, i + kBlock, depth, Left<T>{a.data + i * a.row, a.row, a.col}, b, b_stride, c + i * c_stride, c_stride, store);
}

/// to [cols, rows] = from [rows, cols]^T.
template <class T>
void transpose(int64_t rows, int64_t cols, const T* from, int64_t from_stride, T* to, int64_t to_stride) {
  for (int64_t i = 0; i < rows; i += tiles::kLanes<T>)
    for (int64_t j = 0; j < cols; j += tiles::kLanes<T>)
      tiles::transpose_square(from + i * from_stride + j, from_stride, to + j * to_stride + i, to_stride);
}

/// inverse [rows, rows] of I + diag(beta) · strict, `strict` strictly lower triangular (zeros inside its diagonal blocks):
/// blocks of 16 by substitution, merged to 32 and 64. `scratch` has rows² elements.
template <class T>
void invert_unit_lower(int64_t rows, const T* strict, const T* beta, T* inverse, int64_t stride, T* scratch) {
  for (int64_t i = 0; i < rows; ++i) {
    T* x = inverse + i * stride;
    const int64_t start = i / kBlock * kBlock;
    for (int64_t c = 0; c < rows; ++c) x[c] = T(0);
    x[i] = T(1);
    for (int64_t j = start; j < i; ++j) {
      const T factor = beta[i] * strict[i * stride + j];
      const T* above = inverse + j * stride + start;
      for (int64_t c = 0; c < kBlock; ++c) x[start + c] -= factor * above[c];
    }
  }
  for (int64_t size = kBlock; size < rows; size *= 2) {
    for (int64_t i = size; i < rows; i += 2 * size) {
      const int64_t low = rows - i < size ? rows - i : size, j = i - size;
      multiply(low, size, size, plain(strict + i * stride + j, stride), inverse + j * stride + j, stride, scratch, size, Store::set);
      for (int64_t r = 0; r < low; ++r)
        for (int64_t c = 0; c < size; ++c) scratch[r * size + c] *= beta[i + r];
      multiply_lower(low, size, plain(inverse + i * stride + i, stride), scratch, size, inverse + i * stride + j, stride, Store::subtract);
    }
  }
}

}  // namespace braid::chunk
