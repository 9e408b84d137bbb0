#include "core/tensor.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "core/context.h"
#include "core/transfers.h"

namespace braid {
namespace {

Shape row_major_strides(const Shape& shape) {
  Shape strides = shape;
  int64_t stride = 1;
  for (int i = shape.rank() - 1; i >= 0; --i) {
    strides.set(i, stride);
    stride *= shape[i];
  }
  return strides;
}

/// Copies a strided CPU tensor into contiguous bytes, dimension by dimension; the last one in one piece where it can be.
void gather(const Tensor& from, int dim, int64_t offset, std::byte*& to) {
  const int64_t bytes = size_bytes(from.dtype());
  if (dim == from.rank()) {
    std::memcpy(to, from.raw() + offset * bytes, bytes);
    to += bytes;
    return;
  }
  if (dim == from.rank() - 1 && from.strides()[dim] == 1) {
    std::memcpy(to, from.raw() + offset * bytes, from.size(dim) * bytes);
    to += from.size(dim) * bytes;
    return;
  }
  for (int64_t i = 0; i < from.size(dim); ++i) gather(from, dim + 1, offset + i * from.strides()[dim], to);
}

template <class Body>
void with_number_type(DType dtype, Body&& body) {
  switch (dtype) {
    case DType::f64:
      return body(double{});
    case DType::f32:
      return body(float{});
    case DType::bf16:
      return body(bf16{});
    case DType::f16:
      return body(f16{});
    case DType::i64:
      return body(int64_t{});
    case DType::i32:
      return body(int32_t{});
    case DType::u16:
      return body(uint16_t{});
    case DType::u8:
      return body(uint8_t{});
  }
}

template <class To, class From>
To number_cast(From value) {
  if constexpr (std::is_same_v<To, From>) return value;
  else if constexpr (std::is_same_v<From, bf16> || std::is_same_v<From, f16>) return number_cast<To>(static_cast<float>(value));
  else if constexpr (std::is_same_v<To, bf16>) return bf16(static_cast<float>(value));
  else if constexpr (std::is_same_v<To, f16>) fail("converted: f16 is read, never written");
  else return static_cast<To>(value);
}

template <class To, class From>
void convert_range(const From* from, To* to, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) to[i] = number_cast<To>(from[i]);
}

CopyKind copy_kind(Device to, Device from) {
  if (to.kind == DeviceKind::cpu) return CopyKind::device_to_host;
  return from.kind == DeviceKind::cpu ? CopyKind::host_to_device : CopyKind::device_to_device;
}

}  // namespace

Tensor Tensor::empty(Context& ctx, const Shape& shape, DType dtype) {
  const int64_t bytes = shape.numel() * size_bytes(dtype);
  return over(Storage::make(bytes, ctx.stream(), ctx.guarded_allocations), 0, shape, dtype);
}

Tensor Tensor::zeros(Context& ctx, const Shape& shape, DType dtype) {
  Tensor tensor = empty(ctx, shape, dtype);
  fill_zero(ctx, tensor);
  return tensor;
}

Tensor Tensor::over(std::shared_ptr<Storage> storage, int64_t offset_bytes, const Shape& shape, DType dtype) {
  const int64_t bytes = braid::size_bytes(dtype);
  BRAID_CHECK(offset_bytes >= 0 && offset_bytes % bytes == 0, "tensor: offset ", offset_bytes, " is not a multiple of ", dtype, "'s size");
  BRAID_CHECK(offset_bytes + shape.numel() * bytes <= storage->size_bytes(), "tensor: ", dtype, " ", shape, " at byte ", offset_bytes,
              " does not fit into ", storage->size_bytes(), " bytes");
  Tensor tensor;
  tensor.storage_ = std::move(storage);
  tensor.offset_ = offset_bytes / bytes;
  tensor.shape_ = shape;
  tensor.strides_ = row_major_strides(shape);
  tensor.dtype_ = dtype;
  return tensor;
}

bool Tensor::contiguous() const {
  int64_t expected = 1;
  for (int i = rank() - 1; i >= 0; --i) {
    if (shape_[i] != 1 && strides_[i] != expected) return numel() == 0;
    expected *= shape_[i];
  }
  return true;
}

Tensor Tensor::view(const Shape& shape) const {
  BRAID_CHECK(contiguous(), "view: the tensor must be contiguous");
  BRAID_CHECK(shape.numel() == numel(), "view: ", shape_, " cannot be seen as ", shape);
  Tensor result = *this;
  result.shape_ = shape;
  result.strides_ = row_major_strides(shape);
  return result;
}

Tensor Tensor::slice(int dim, int64_t begin, int64_t end) const {
  BRAID_CHECK(dim >= 0 && dim < rank() && begin >= 0 && begin <= end && end <= size(dim), "slice: [", begin, ", ", end, ") of dimension ", dim,
              " is not inside ", shape_);
  Tensor result = detached();
  result.offset_ += begin * strides_[dim];
  result.shape_.set(dim, end - begin);
  return result;
}

Tensor Tensor::with_grad_ref(GradRef ref) const {
  Tensor result = *this;
  result.grad_ref_ = ref;
  return result;
}

void Tensor::require_dtype(DType wanted) const {
  BRAID_CHECK(defined(), "tensor: an undefined tensor has no data");
  BRAID_CHECK(dtype_ == wanted, "tensor: asked for ", wanted, " data of a ", dtype_, " tensor ", shape_);
}

Tensor contiguous(Context& ctx, const Tensor& tensor) {
  if (!tensor.defined() || tensor.contiguous()) return tensor;
  BRAID_CHECK(tensor.device().kind == DeviceKind::cpu, "contiguous: device tensors must already be contiguous, got shape ", tensor.shape());
  Tensor result = Tensor::empty(ctx, tensor.shape(), tensor.dtype());
  std::byte* to = result.raw();
  gather(tensor, 0, 0, to);
  return result;
}

Tensor converted(Context& ctx, const Tensor& tensor, DType dtype) {
  if (!tensor.defined() || tensor.dtype() == dtype) return tensor;
  Tensor to = Tensor::empty(ctx, tensor.shape(), dtype);
  if (is_floating(dtype) && is_floating(tensor.dtype()) && tensor.dtype() != DType::f16) {
    convert_into(ctx, to, contiguous(ctx, tensor), false);
    return to;
  }
  BRAID_CHECK(tensor.device().kind == DeviceKind::cpu, "converted: ", tensor.dtype(), " to ", dtype, " works on the CPU only");
  const Tensor from = contiguous(ctx, tensor);
  with_number_type(from.dtype(), [&](auto from_type) {
    with_number_type(dtype, [&](auto to_type) { convert_range(from.data<decltype(from_type)>(), to.data<decltype(to_type)>(), 0, from.numel()); });
  });
  return to;
}

void convert_into(Context& ctx, const Tensor& to, const Tensor& from, bool add) {
  BRAID_CHECK(to.numel() == from.numel(), "convert: expected ", to.numel(), " elements like the target ", to.shape(), ", got ", from.shape());
  BRAID_CHECK(to.contiguous() && from.contiguous(), "convert: both tensors must be contiguous");
  DeviceBackend& backend = backend_of(to.device());
  const int64_t to_bytes = size_bytes(to.dtype()), from_bytes = size_bytes(from.dtype());
  const int64_t grain = ctx.on_cpu() ? 1 << 15 : std::max<int64_t>(1, to.numel());
  ctx.parallel_for(to.numel(), grain, [&](int64_t begin, int64_t end) {
    backend.convert(to.raw() + begin * to_bytes, to.dtype(), from.raw() + begin * from_bytes, from.dtype(), end - begin, add, ctx.stream());
  });
}

Tensor copied(Context& ctx, const Tensor& tensor) {
  Tensor result = Tensor::empty(ctx, tensor.shape(), tensor.dtype());
  copy_into(ctx, result, tensor.contiguous() ? tensor : contiguous(ctx, tensor));
  return result;
}

void copy_into(Context& ctx, const Tensor& to, const Tensor& from) {
  BRAID_CHECK(to.shape() == from.shape() && to.dtype() == from.dtype(), "copy: expected ", to.dtype(), " ", to.shape(), ", got ", from.dtype(), " ",
              from.shape());
  BRAID_CHECK(to.contiguous() && from.contiguous(), "copy: both tensors must be contiguous");
  const Tensor& far = to.device().kind == DeviceKind::cpu ? from : to;
  DeviceBackend& backend = backend_of(far.device());
  const bool waits = ctx.on_cpu() && far.device().kind != DeviceKind::cpu;
  const Stream stream = waits ? far.storage()->stream() : ctx.stream();
  backend.copy(to.raw(), from.raw(), from.nbytes(), copy_kind(to.device(), from.device()), stream);
  if (waits) backend.synchronize(stream);
}

void fill_zero(Context& ctx, const Tensor& tensor) {
  BRAID_CHECK(tensor.contiguous(), "fill_zero: the tensor must be contiguous");
  backend_of(tensor.device()).fill(tensor.raw(), 0, tensor.nbytes(), ctx.stream());
}

template <class T>
Tensor from_vector(Context& ctx, const std::vector<T>& values, const Shape& shape) {
  BRAID_CHECK(static_cast<int64_t>(values.size()) == shape.numel(), "from_vector: ", values.size(), " values for shape ", shape);
  Tensor result = Tensor::empty(ctx, shape, dtype_of<T>());
  transfers_of(result.device()).upload(result.raw(), values.data(), static_cast<size_t>(result.nbytes()), ctx.stream());
  return result;
}

template <class T>
std::vector<T> to_vector(Context& ctx, const Tensor& tensor) {
  std::vector<T> values(tensor.numel());
  Context host;
  Tensor local = tensor;
  if (tensor.device().kind != DeviceKind::cpu) {
    local = Tensor::empty(host, tensor.shape(), tensor.dtype());
    copy_into(ctx, local, tensor);
    backend_of(tensor.device()).synchronize(ctx.stream());
  }
  local = contiguous(host, local);
  if (local.numel() == 0) return values;
  with_number_type(local.dtype(), [&](auto type) { convert_range(local.data<decltype(type)>(), values.data(), 0, local.numel()); });
  return values;
}

double item(Context& ctx, const Tensor& tensor) {
  BRAID_CHECK(tensor.numel() == 1, "item: expected one element, got shape ", tensor.shape());
  return to_vector<double>(ctx, tensor)[0];
}

template Tensor from_vector<double>(Context&, const std::vector<double>&, const Shape&);
template Tensor from_vector<float>(Context&, const std::vector<float>&, const Shape&);
template Tensor from_vector<int64_t>(Context&, const std::vector<int64_t>&, const Shape&);
template Tensor from_vector<int32_t>(Context&, const std::vector<int32_t>&, const Shape&);
template Tensor from_vector<uint16_t>(Context&, const std::vector<uint16_t>&, const Shape&);
template Tensor from_vector<uint8_t>(Context&, const std::vector<uint8_t>&, const Shape&);
template Tensor from_vector<bf16>(Context&, const std::vector<bf16>&, const Shape&);
template std::vector<double> to_vector<double>(Context&, const Tensor&);
template std::vector<float> to_vector<float>(Context&, const Tensor&);
template std::vector<int64_t> to_vector<int64_t>(Context&, const Tensor&);
template std::vector<int32_t> to_vector<int32_t>(Context&, const Tensor&);
template std::vector<uint16_t> to_vector<uint16_t>(Context&, const Tensor&);
template std::vector<uint8_t> to_vector<uint8_t>(Context&, const Tensor&);

}  // namespace braid
