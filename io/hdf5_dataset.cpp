// Datasets: growing lists of numbers, and whole tensors.
#include <algorithm>
#include <type_traits>

#include "io/hdf5_internal.h"

namespace braid {
namespace {

// A byte of deflate makes at most 1032 bytes; a file that claims more lies.
constexpr int64_t kMaxExpansion = 1100;
constexpr int64_t kMaxChunkBytes = int64_t{256} << 20;
constexpr int64_t kTensorChunkBytes = int64_t{1} << 20;
constexpr int64_t kCompactBytes = 4096;  // kept in the object's header, which has a checksum

std::string type_name_of(hid_t type) {
  const H5T_class_t kind = H5Tget_class(type);
  const std::string bits = std::to_string(8 * H5Tget_size(type));
  if (kind == H5T_INTEGER) return (H5Tget_sign(type) == H5T_SGN_NONE ? "u" : "i") + bits;
  if (kind == H5T_FLOAT && (H5Tget_size(type) == 4 || H5Tget_size(type) == 8)) return "f" + bits;
  return "other";
}

/// The type of a tensor's elements as the library knows them; 16-bit floats are kept as bits.
hid_t library_type(DType dtype, bool on_disk) {
  switch (dtype) {
    case DType::f64:
      return on_disk ? disk_type<double>() : memory_type<double>();
    case DType::f32:
      return on_disk ? disk_type<float>() : memory_type<float>();
    case DType::i64:
      return on_disk ? disk_type<int64_t>() : memory_type<int64_t>();
    case DType::i32:
      return on_disk ? disk_type<int32_t>() : memory_type<int32_t>();
    case DType::u8:
      return on_disk ? disk_type<uint8_t>() : memory_type<uint8_t>();
    case DType::bf16:
    case DType::f16:
    case DType::u16:
      break;
  }
  return on_disk ? disk_type<uint16_t>() : memory_type<uint16_t>();
}

DType tensor_dtype(const Hdf5Dataset& dataset) {
  const std::string text = dataset.has_attribute("dtype") ? dataset.attribute<std::string>("dtype") : dataset.type_name();
  for (DType dtype : {DType::f64, DType::f32, DType::bf16, DType::f16, DType::i64, DType::i32, DType::u16, DType::u8}) {
    const std::string_view stored = dtype == DType::bf16 || dtype == DType::f16 ? "u16" : to_string(dtype);
    if (text == to_string(dtype) && dataset.type_name() == stored) return dtype;
  }
  fail(dataset.name(), ": a tensor cannot have dtype ", text, " stored as ", dataset.type_name());
}

/// Chunks of whole rows of about kTensorChunkBytes, with checksums; little tensors lie in the header.
Hdf5Handle tensor_layout(const Tensor& tensor, const std::string& what) {
  Hdf5Handle layout(H5Pcreate(H5P_DATASET_CREATE), what);
  if (tensor.nbytes() <= kCompactBytes) {
    check_hdf5(H5Pset_layout(layout.id(), H5D_COMPACT), what);
    return layout;
  }
  std::vector<hsize_t> chunk(tensor.rank());
  int64_t room = kTensorChunkBytes / size_bytes(tensor.dtype());
  for (int i = tensor.rank() - 1; i >= 0; --i) {
    chunk[i] = static_cast<hsize_t>(std::min(tensor.size(i), std::max<int64_t>(room, 1)));
    room /= static_cast<int64_t>(chunk[i]);
  }
  check_hdf5(H5Pset_chunk(layout.id(), tensor.rank(), chunk.data()), what);
  check_hdf5(H5Pset_fletcher32(layout.id()), what);
  return layout;
}

Hdf5Handle make_dataset(hid_t where, const std::string& path, hid_t type, const Hdf5Handle& space, const Hdf5Handle& layout,
                        const std::string& what) {
  const Hdf5Handle links(H5Pcreate(H5P_LINK_CREATE), what);
  check_hdf5(H5Pset_create_intermediate_group(links.id(), 1), what);
  check_hdf5(H5Pset_obj_track_times(layout.id(), 0), what);  // equal contents, equal bytes
  return Hdf5Handle(H5Dcreate2(where, path.c_str(), type, space.id(), links.id(), layout.id(), H5P_DEFAULT), what);
}

Tensor on_host(Context& ctx, const Tensor& tensor) {
  Tensor whole = contiguous(ctx, tensor);
  if (whole.device().kind == DeviceKind::cpu) return whole;
  Tensor copy = Tensor::over(Storage::make(whole.nbytes(), Stream()), 0, whole.shape(), whole.dtype());
  copy_into(ctx, copy, whole);
  ctx.synchronize();
  return copy;
}

/// Refuses what would make the library allocate, or read elsewhere, at the word of the file.
void check_storage(hid_t dataset, int64_t num_bytes, int64_t file_bytes, const std::string& what) {
  BRAID_CHECK(file_bytes > INT64_MAX / kMaxExpansion || num_bytes <= file_bytes * kMaxExpansion, what, ": it claims ", num_bytes,
              " bytes of numbers, more than a file of ", file_bytes, " bytes can hold");
  const Hdf5Handle layout(H5Dget_create_plist(dataset), what);
  BRAID_CHECK(H5Pget_external_count(layout.id()) == 0 && H5Pget_layout(layout.id()) != H5D_VIRTUAL, what, ": its values lie in another file");
  if (H5Pget_layout(layout.id()) != H5D_CHUNKED) return;
  hsize_t chunk[H5S_MAX_RANK] = {};
  const int rank = H5Pget_chunk(layout.id(), H5S_MAX_RANK, chunk);
  check_hdf5(rank, what);
  const Hdf5Handle type(H5Dget_type(dataset), what);
  uint64_t bytes = H5Tget_size(type.id());
  for (int i = 0; i < rank; ++i)
    BRAID_CHECK(!__builtin_mul_overflow(bytes, uint64_t{chunk[i]}, &bytes) && bytes <= uint64_t{kMaxChunkBytes}, what,
                ": its chunks are larger than ", kMaxChunkBytes, " bytes");
}

}  // namespace

Hdf5Dataset::Hdf5Dataset(Hdf5Handle handle, std::string path, std::shared_ptr<Hdf5FileState> file)
    : Hdf5Object(std::move(handle), std::move(path), std::move(file)) {
  const std::string what = name();
  const Hdf5Handle type(H5Dget_type(handle_.id()), what);
  type_name_ = type_name_of(type.id());
  const Hdf5Handle space(H5Dget_space(handle_.id()), what);
  BRAID_CHECK(H5Sget_simple_extent_type(space.id()) != H5S_NULL, what, ": it holds no numbers");
  const int rank = H5Sget_simple_extent_ndims(space.id());
  check_hdf5(rank, what);
  std::vector<hsize_t> extents(rank);
  check_hdf5(H5Sget_simple_extent_dims(space.id(), extents.data(), nullptr), what);
  auto bytes = static_cast<int64_t>(H5Tget_size(type.id()));
  for (const hsize_t extent : extents) {
    BRAID_CHECK(extent <= INT64_MAX && !__builtin_mul_overflow(bytes, static_cast<int64_t>(extent), &bytes), what, ": a dimension of ", extent);
    extents_.push_back(static_cast<int64_t>(extent));
  }
  check_storage(handle_.id(), bytes, file_->num_bytes, what);
}

int64_t Hdf5Dataset::size() const {
  int64_t count = 1;
  for (const int64_t extent : extents_) count *= extent;
  return count;
}

void Hdf5Dataset::transfer(int64_t begin, int64_t count, int64_t memory_type, void* to, const void* from) const {
  silence_hdf5();
  const std::string what = name();
  const hsize_t start = static_cast<hsize_t>(begin), length = static_cast<hsize_t>(count);
  const Hdf5Handle space(H5Dget_space(handle_.id()), what);
  check_hdf5(H5Sselect_hyperslab(space.id(), H5S_SELECT_SET, &start, nullptr, &length, nullptr), what);
  const Hdf5Handle memory(H5Screate_simple(1, &length, nullptr), what);
  if (to) check_hdf5(H5Dread(handle_.id(), memory_type, memory.id(), space.id(), H5P_DEFAULT, to), "cannot read " + what);
  else check_hdf5(H5Dwrite(handle_.id(), memory_type, memory.id(), space.id(), H5P_DEFAULT, from), "cannot write " + what);
}

template <class T>
void Hdf5Dataset::read(int64_t begin, int64_t count, T* to) const {
  BRAID_CHECK(extents_.size() == 1, name(), ": expected a list, got ", extents_.size(), " dimensions");
  BRAID_CHECK(begin >= 0 && count >= 0 && count <= extents_[0] && begin <= extents_[0] - count, name(), ": ", count, " elements from ", begin,
              " on lie outside its ", extents_[0]);
  const bool integer = type_name_[0] != 'f' && type_name_ != "other";
  BRAID_CHECK(integer == std::is_integral_v<T> && type_name_ != "other", name(), ": expected ",
              std::is_integral_v<T> ? "integers" : "floating numbers", ", got ", type_name_);
  if (count > 0) transfer(begin, count, memory_type<T>(), to, nullptr);
}

template <class T>
void Hdf5Dataset::append(const T* from, int64_t count) {
  if (count == 0) return;
  silence_hdf5();
  BRAID_CHECK(extents_.size() == 1, name(), ": only a list can grow");
  const int64_t begin = extents_[0];
  const hsize_t size = static_cast<hsize_t>(begin) + static_cast<hsize_t>(count);
  check_hdf5(H5Dset_extent(handle_.id(), &size), "cannot write " + name());
  extents_[0] = begin + count;
  transfer(begin, count, memory_type<T>(), nullptr, from);
  file_->check_writes();
}

Hdf5Dataset Hdf5Group::dataset(const std::string& path) const {
  BRAID_CHECK(contains(path), file_->name, ": there is no dataset ", joined(path));
  return Hdf5Dataset({H5Dopen2(handle_.id(), path.c_str(), H5P_DEFAULT), file_->name + ": " + joined(path)}, joined(path), file_);
}

template <class T>
Hdf5Dataset Hdf5Group::create_growing(const std::string& path, int64_t chunk, int deflate) {
  silence_hdf5();
  const std::string what = "cannot write " + file_->name + ": " + joined(path);
  const hsize_t none = 0, unlimited = H5S_UNLIMITED, chunk_size = static_cast<hsize_t>(chunk);
  const Hdf5Handle space(H5Screate_simple(1, &none, &unlimited), what);
  const Hdf5Handle layout(H5Pcreate(H5P_DATASET_CREATE), what);
  check_hdf5(H5Pset_chunk(layout.id(), 1, &chunk_size), what);
  if (deflate > 0) {
    check_hdf5(H5Pset_shuffle(layout.id()), what);  // high bytes of tokens are alike: they compress better side by side
    check_hdf5(H5Pset_deflate(layout.id(), static_cast<unsigned>(deflate)), what);
  }
  check_hdf5(H5Pset_fletcher32(layout.id()), what);
  Hdf5Dataset made(make_dataset(handle_.id(), path, disk_type<T>(), space, layout, what), joined(path), file_);
  file_->check_writes();
  return made;
}

void Hdf5Group::write_tensor(Context& ctx, const std::string& path, const Tensor& tensor) {
  silence_hdf5();
  const std::string what = "cannot write " + file_->name + ": " + joined(path);
  BRAID_CHECK(tensor.defined(), what, ": the tensor is undefined");
  const Tensor host = on_host(ctx, tensor);
  const std::vector<hsize_t> extents(host.shape().begin(), host.shape().end());
  const Hdf5Handle space(host.rank() == 0 ? H5Screate(H5S_SCALAR) : H5Screate_simple(host.rank(), extents.data(), nullptr), what);
  const Hdf5Handle layout = tensor_layout(host, what);
  Hdf5Dataset made(make_dataset(handle_.id(), path, library_type(host.dtype(), true), space, layout, what), joined(path), file_);
  if (host.dtype() == DType::bf16 || host.dtype() == DType::f16) made.set_attribute("dtype", std::string(to_string(host.dtype())));
  if (host.numel() > 0) check_hdf5(H5Dwrite(made.handle_.id(), library_type(host.dtype(), false), H5S_ALL, H5S_ALL, H5P_DEFAULT, host.raw()), what);
  file_->check_writes();
}

void Hdf5Dataset::read_whole(DType dtype, void* to) const {
  silence_hdf5();
  if (size() == 0) return;
  check_hdf5(H5Dread(handle_.id(), library_type(dtype, false), H5S_ALL, H5S_ALL, H5P_DEFAULT, to), "cannot read " + name());
}

Tensor Hdf5Group::read_tensor(Context& ctx, const std::string& path) const {
  const Hdf5Dataset source = dataset(path);
  BRAID_CHECK(source.extents().size() <= Shape::kMaxRank, source.name(), ": a tensor of ", source.extents().size(), " dimensions");
  Shape shape;
  for (const int64_t extent : source.extents()) shape.push_back(extent);
  Tensor result = Tensor::empty(ctx, shape, tensor_dtype(source));
  read_tensor_into(ctx, path, result);
  return result;
}

void Hdf5Group::read_tensor_into(Context& ctx, const std::string& path, const Tensor& to) const {
  const Hdf5Dataset source = dataset(path);
  const DType dtype = tensor_dtype(source);
  const Shape& shape = to.shape();
  BRAID_CHECK(to.contiguous(), source.name(), ": a contiguous tensor is expected to read into");
  const bool same = dtype == to.dtype() && std::equal(shape.begin(), shape.end(), source.extents().begin(), source.extents().end());
  if (!same) {
    std::string given;
    for (const int64_t extent : source.extents()) given += (given.empty() ? "" : ", ") + std::to_string(extent);
    fail(source.name(), ": expected ", to.dtype(), ' ', shape, ", got ", dtype, " [", given, "]");
  }
  if (to.device().kind == DeviceKind::cpu) return source.read_whole(dtype, to.raw());
  const Tensor host = Tensor::over(Storage::make(to.nbytes(), Stream()), 0, shape, dtype);
  source.read_whole(dtype, host.raw());
  copy_into(ctx, to, host);
  ctx.synchronize();
}

template void Hdf5Dataset::read(int64_t, int64_t, uint8_t*) const;
template void Hdf5Dataset::read(int64_t, int64_t, uint16_t*) const;
template void Hdf5Dataset::read(int64_t, int64_t, uint32_t*) const;
template void Hdf5Dataset::read(int64_t, int64_t, uint64_t*) const;
template void Hdf5Dataset::read(int64_t, int64_t, int32_t*) const;
template void Hdf5Dataset::read(int64_t, int64_t, int64_t*) const;
template void Hdf5Dataset::read(int64_t, int64_t, float*) const;
template void Hdf5Dataset::read(int64_t, int64_t, double*) const;
template void Hdf5Dataset::append(const uint8_t*, int64_t);
template void Hdf5Dataset::append(const uint16_t*, int64_t);
template void Hdf5Dataset::append(const uint32_t*, int64_t);
template void Hdf5Dataset::append(const uint64_t*, int64_t);
template void Hdf5Dataset::append(const int32_t*, int64_t);
template void Hdf5Dataset::append(const int64_t*, int64_t);
template void Hdf5Dataset::append(const float*, int64_t);
template void Hdf5Dataset::append(const double*, int64_t);
template Hdf5Dataset Hdf5Group::create_growing<uint8_t>(const std::string&, int64_t, int);
template Hdf5Dataset Hdf5Group::create_growing<uint16_t>(const std::string&, int64_t, int);
template Hdf5Dataset Hdf5Group::create_growing<uint32_t>(const std::string&, int64_t, int);
template Hdf5Dataset Hdf5Group::create_growing<uint64_t>(const std::string&, int64_t, int);
template Hdf5Dataset Hdf5Group::create_growing<int32_t>(const std::string&, int64_t, int);
template Hdf5Dataset Hdf5Group::create_growing<int64_t>(const std::string&, int64_t, int);
template Hdf5Dataset Hdf5Group::create_growing<float>(const std::string&, int64_t, int);
template Hdf5Dataset Hdf5Group::create_growing<double>(const std::string&, int64_t, int);

}  // namespace braid
