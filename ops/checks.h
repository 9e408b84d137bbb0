// Argument checks of operators: one line that names operator, argument, expected and given.
#pragma once
#include <initializer_list>
#include <string_view>

#include "core/tensor.h"

namespace braid {

/// One dimension of an expected shape: its letter and its extent (kAny: whatever is given).
struct Dim {
  static constexpr int64_t kAny = -1;
  std::string_view letter;
  int64_t extent = kAny;
};

/// `tensor` must be defined, have these dimensions and dtype: "rms_norm: weight must be f32 [D = 64], got f32 [63]".
void check_tensor(std::string_view op, std::string_view argument, const Tensor& tensor, std::initializer_list<Dim> dims, DType dtype);
/// The same for any floating dtype.
void check_tensor(std::string_view op, std::string_view argument, const Tensor& tensor, std::initializer_list<Dim> dims);

}  // namespace braid
