#include "io/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>

namespace braid {
namespace {

static_assert(std::endian::native == std::endian::little, "the format is little endian");

constexpr int64_t kLengthBytes = 8;
constexpr int64_t kMaxHeaderBytes = 100'000'000;
constexpr int64_t kHeaderAlignment = 8;
constexpr std::string_view kMetadataName = "__metadata__";

std::string_view format_name(DType dtype) {
  constexpr std::string_view kNames[] = {"F64", "F32", "BF16", "F16", "I64", "I32", "U16", "U8"};
  return kNames[static_cast<int>(dtype)];
}

/// The header's JSON, padded with blanks so that the data after it are aligned.
std::string make_header(const std::vector<const NamedTensor*>& tensors, const std::map<std::string, std::string>& metadata) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header[kMetadataName] = metadata;
  int64_t begin = 0;
  std::string text = header.dump();
  text.pop_back();
  for (const NamedTensor* named : tensors) {
    const Tensor& tensor = named->tensor;
    nlohmann::ordered_json entry;
    entry["dtype"] = format_name(tensor.dtype());
    entry["shape"] = std::vector<int64_t>(tensor.shape().begin(), tensor.shape().end());
    entry["data_offsets"] = {begin, begin + tensor.nbytes()};
    begin += tensor.nbytes();
    if (text.size() > 1) text += ',';
    text += nlohmann::json(named->name).dump() + ':' + entry.dump();
  }
  text += '}';
  while (text.size() % kHeaderAlignment != 0) text += ' ';
  return text;
}

std::vector<const NamedTensor*> in_file_order(const Path& path, const std::vector<NamedTensor>& tensors) {
  std::vector<const NamedTensor*> order;
  std::set<std::string_view> names;
  for (const NamedTensor& named : tensors) {
    BRAID_CHECK(named.tensor.defined(), "cannot write ", path.string(), ": tensor \"", named.name, "\" is undefined");
    BRAID_CHECK(named.name != kMetadataName, "cannot write ", path.string(), ": the tensor name ", kMetadataName, " is reserved");
    BRAID_CHECK(names.insert(named.name).second, "cannot write ", path.string(), ": the tensor name \"", named.name, "\" is repeated");
    order.push_back(&named);
  }
  std::stable_sort(order.begin(), order.end(),
                   [](const auto* a, const auto* b) { return size_bytes(a->tensor.dtype()) > size_bytes(b->tensor.dtype()); });
  return order;
}

void write_tensor(Context& ctx, AtomicFile& file, const Tensor& tensor) {
  Tensor host = contiguous(ctx, tensor);
  if (host.device().kind != DeviceKind::cpu) {
    Tensor copy = Tensor::over(Storage::make(host.nbytes(), Stream()), 0, host.shape(), host.dtype());
    copy_into(ctx, copy, host);
    ctx.synchronize();
    host = copy;
  }
  file.write(host.raw(), host.nbytes());
}

}  // namespace

Safetensors::Safetensors(const Path& path) : path_(path) {
  const auto file = std::make_shared<MappedFile>(path);
  const std::string name = path.string();
  const int64_t size = file->size_bytes();
  BRAID_CHECK(size >= kLengthBytes, name, ": not a safetensors file: it has ", size, " bytes");
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, file->data(), kLengthBytes);
  BRAID_CHECK(header_bytes <= static_cast<uint64_t>(size - kLengthBytes), name, ": not a safetensors file: its header claims ", header_bytes,
              " bytes, the file has ", size);
  BRAID_CHECK(header_bytes <= static_cast<uint64_t>(kMaxHeaderBytes), name, ": its header claims ", header_bytes, " bytes, expected at most ",
              kMaxHeaderBytes);
  data_begin_ = kLengthBytes + static_cast<int64_t>(header_bytes);
  const std::string_view json(reinterpret_cast<const char*>(file->data() + kLengthBytes), header_bytes);
  SafetensorsHeader header = parse_safetensors_header(name, json, size - data_begin_);
  entries_ = std::move(header.entries);
  metadata_ = std::move(header.metadata);
  for (size_t i = 0; i < entries_.size(); ++i) index_[entries_[i].name] = i;
  bytes_ = Storage::wrap(file->data(), size, Device{}, file);
}

const Safetensors::Entry* Safetensors::find(std::string_view name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &entries_[found->second];
}

Tensor Safetensors::get(std::string_view name) const {
  const Entry* entry = find(name);
  BRAID_CHECK(entry, path_.string(), ": there is no tensor \"", name, "\"");
  BRAID_CHECK(entry->dtype, path_.string(), ": tensor \"", name, "\" has dtype ", entry->dtype_name, ", which is not supported");
  const int64_t begin = data_begin_ + entry->begin_bytes;
  if (begin % size_bytes(*entry->dtype) == 0) return Tensor::over(bytes_, begin, entry->shape, *entry->dtype);
  const int64_t bytes = entry->end_bytes - entry->begin_bytes;
  auto aligned = Storage::make(bytes, Stream());
  if (bytes > 0) std::memcpy(aligned->data(), bytes_->data() + begin, static_cast<size_t>(bytes));
  return Tensor::over(aligned, 0, entry->shape, *entry->dtype);
}

void write_safetensors(Context& ctx, const Path& path, const std::vector<NamedTensor>& tensors, const std::map<std::string, std::string>& metadata) {
  const std::vector<const NamedTensor*> order = in_file_order(path, tensors);
  std::string header;
  try {
    header = make_header(order, metadata);
  } catch (const nlohmann::json::exception&) {
    fail("cannot write ", path.string(), ": a name or a text of the metadata is not valid UTF-8");
  }
  const uint64_t header_bytes = header.size();
  AtomicFile file(path);
  file.write(&header_bytes, kLengthBytes);
  file.write(header);
  for (const NamedTensor* named : order) write_tensor(ctx, file, named->tensor);
  file.commit();
}

}  // namespace braid
