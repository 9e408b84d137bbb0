// Tensor: a cheap handle on part of a storage.
#pragma once
#include <memory>
#include <vector>

#include "core/dtype.h"
#include "core/shape.h"
#include "core/storage.h"

namespace braid {

class Context;

/// Which value on which tape a tensor is. Slot -1: no gradient flows through it.
struct GradRef {
  uint64_t tape = 0;
  int64_t slot = -1;
  bool tracked() const { return slot >= 0; }
};

/// A handle: storage, offset, shape, strides (in elements), dtype. Copies share the bytes; `const` protects the handle, not them.
class Tensor {
 public:
  Tensor() = default;  // undefined: an optional tensor that is absent

  /// Uninitialised, contiguous, on the context's device and stream.
  static Tensor empty(Context& ctx, const Shape& shape, DType dtype);
  static Tensor zeros(Context& ctx, const Shape& shape, DType dtype);
  /// A tensor over `storage` from its byte `offset_bytes` on. Throws Error when it does not fit or is misaligned.
  static Tensor over(std::shared_ptr<Storage> storage, int64_t offset_bytes, const Shape& shape, DType dtype);

  bool defined() const { return storage_ != nullptr; }
  explicit operator bool() const { return defined(); }
  const Shape& shape() const { return shape_; }
  const Shape& strides() const { return strides_; }
  int rank() const { return shape_.rank(); }
  int64_t size(int dim) const { return shape_[dim]; }
  int64_t numel() const { return shape_.numel(); }
  int64_t nbytes() const { return numel() * size_bytes(dtype_); }
  DType dtype() const { return dtype_; }
  Device device() const { return storage_ ? storage_->device() : Device{}; }
  bool contiguous() const;
  const std::shared_ptr<Storage>& storage() const { return storage_; }

  /// The first element. Throws Error when T is not this tensor's dtype. Device tensors give device pointers.
  template <class T>
  T* data() const {
    require_dtype(dtype_of<T>());
    return reinterpret_cast<T*>(raw());
  }
  std::byte* raw() const { return storage_ ? storage_->data() + offset_ * size_bytes(dtype_) : nullptr; }

  /// The same bytes (and the same gradient) in another shape. Throws Error when not contiguous or the counts differ.
  Tensor view(const Shape& shape) const;
  /// Indices [begin, end) of dimension `dim`, sharing the bytes but no gradient. Throws Error when out of range.
  Tensor slice(int dim, int64_t begin, int64_t end) const;

  /// Where gradients of this value are kept (set by the tape).
  const GradRef& grad_ref() const { return grad_ref_; }
  Tensor with_grad_ref(GradRef ref) const;
  /// The same value, through which no gradient flows.
  Tensor detached() const { return with_grad_ref({}); }

 private:
  void require_dtype(DType wanted) const;
  std::shared_ptr<Storage> storage_;
  int64_t offset_ = 0;  // in elements
  Shape shape_, strides_;
  DType dtype_ = DType::f32;
  GradRef grad_ref_;
};

/// A contiguous tensor of the same values (itself when it already is).
Tensor contiguous(Context& ctx, const Tensor& tensor);
/// The values in another dtype, rounded to nearest even (itself when it already has it).
Tensor converted(Context& ctx, const Tensor& tensor, DType dtype);
/// to = from, or to += from, between floating types; as many elements on both sides, both contiguous, one device.
void convert_into(Context& ctx, const Tensor& to, const Tensor& from, bool add);
/// The values copied byte for byte to the context's device.
Tensor copied(Context& ctx, const Tensor& tensor);
/// to[...] = from[...]: same shape and dtype, both contiguous, any devices. Ordered on the context's stream; with a context on the CPU and a
/// tensor elsewhere, on the stream that one was made on, and done on return.
void copy_into(Context& ctx, const Tensor& to, const Tensor& from);
/// Sets every byte to zero (contiguous tensors).
void fill_zero(Context& ctx, const Tensor& tensor);

/// Host values to and from tensors; `to_vector` converts any floating dtype and waits for the device.
template <class T>
Tensor from_vector(Context& ctx, const std::vector<T>& values, const Shape& shape);
template <class T>
std::vector<T> to_vector(Context& ctx, const Tensor& tensor);
/// The one element of a scalar tensor, as a double.
double item(Context& ctx, const Tensor& tensor);

}  // namespace braid
