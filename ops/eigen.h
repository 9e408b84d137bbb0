// Eigen views of tensors, for the CPU code of operators (include it in .cpp files only).
#pragma once
#include <Eigen/Core>

#include "core/context.h"
#include "core/dispatch.h"

namespace braid {

template <class T>
using Matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
template <class T>
using Vector = Eigen::Matrix<T, Eigen::Dynamic, 1>;
template <class T>
using RowVector = Eigen::Matrix<T, 1, Eigen::Dynamic>;

/// Row-major [rows, cols] at `data`, rows `stride` elements apart.
template <class T>
using MatrixMap = Eigen::Map<std::conditional_t<std::is_const_v<T>, const Matrix<std::remove_const_t<T>>, Matrix<T>>, 0, Eigen::OuterStride<>>;
template <class T>
MatrixMap<T> matrix(T* data, int64_t rows, int64_t cols, int64_t stride) {
  return MatrixMap<T>(data, rows, cols, Eigen::OuterStride<>(stride));
}
template <class T>
MatrixMap<T> matrix(T* data, int64_t rows, int64_t cols) {
  return matrix(data, rows, cols, cols);
}

/// A column vector, and the same as an array for elementwise arithmetic.
template <class T>
using VectorMap = Eigen::Map<std::conditional_t<std::is_const_v<T>, const Vector<std::remove_const_t<T>>, Vector<T>>>;
template <class T>
VectorMap<T> vector(T* data, int64_t size) {
  return VectorMap<T>(data, size);
}
template <class T>
using ArrayMap = Eigen::Map<
    std::conditional_t<std::is_const_v<T>, const Eigen::Array<std::remove_const_t<T>, Eigen::Dynamic, 1>, Eigen::Array<T, Eigen::Dynamic, 1>>>;
template <class T>
ArrayMap<T> array(T* data, int64_t size) {
  return ArrayMap<T>(data, size);
}

/// The data of a tensor, or null when it is undefined (an optional input, a gradient nobody wants).
template <class T>
T* data_or_null(const Tensor& tensor) {
  return tensor.defined() ? tensor.data<T>() : nullptr;
}

}  // namespace braid
