// What the host side of kernels asks of tensors.
#pragma once
#include <cstdint>
#include <string_view>

#include "core/tensor.h"

namespace braid::cuda {

/// The address of a tensor's first element, or null when it is undefined (an optional input, a gradient nobody wants).
inline void* address(const Tensor& tensor) { return tensor.defined() ? tensor.raw() : nullptr; }
template <class T>
T* address_of(const Tensor& tensor) {
  return tensor.defined() ? tensor.data<T>() : nullptr;
}

/// True when 16-byte accesses may start at the address (null counts as aligned).
inline bool aligned16(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }
inline bool aligned16(const Tensor& tensor) { return aligned16(address(tensor)); }

/// Number of rows of width size(-1).
inline int64_t num_rows(const Tensor& tensor) { return tensor.size(-1) == 0 ? 0 : tensor.numel() / tensor.size(-1); }

/// bf16 and f32 are what kernels are built for.
inline void require_kernel_dtype(std::string_view op, DType dtype) {
  BRAID_CHECK(dtype == DType::bf16 || dtype == DType::f32, op, ": on a GPU expected bf16 or f32, got ", dtype);
}

}  // namespace braid::cuda
