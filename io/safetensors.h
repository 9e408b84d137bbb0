// The safetensors format: an 8-byte length, a JSON header {name: {dtype, shape, data_offsets}}, and the bytes, without gaps.
// https://huggingface.co/docs/safetensors
#pragma once
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/context.h"
#include "io/file.h"

namespace braid {

/// A safetensors file mapped into memory. Opening reads and checks the header only; tensors are made when asked for and share the
/// mapping, which lives as long as one of them. Nothing in the file is trusted: a header that is longer than the file or 100 MB,
/// is not the JSON the format asks for, repeats a name, or whose ranges overlap, leave gaps, lie outside or do not match shape and
/// dtype is an Error of one line that names the file.
class Safetensors {
 public:
  struct Entry {
    std::string name;
    std::string dtype_name;      // as in the file: "F32", "BF16", …
    std::optional<DType> dtype;  // absent for types of the format that Braid does not compute with (BOOL, I8, F8_E4M3, …)
    Shape shape;
    int64_t begin_bytes = 0, end_bytes = 0;  // within the data
  };

  explicit Safetensors(const Path& path);
  const Path& path() const { return path_; }
  /// In the order of their data.
  const std::vector<Entry>& entries() const { return entries_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  /// Null when absent.
  const Entry* find(std::string_view name) const;
  bool contains(std::string_view name) const { return find(name) != nullptr; }
  /// The tensor, on the CPU. Not a copy, unless its bytes are not aligned to its dtype. Writing to it never changes the file.
  /// Error when there is no such tensor, or its dtype is not one of DType.
  Tensor get(std::string_view name) const;
  /// get(), or an undefined tensor when absent.
  Tensor get_if(std::string_view name) const { return contains(name) ? get(name) : Tensor(); }

 private:
  Path path_;
  std::vector<Entry> entries_;  // sorted by begin_bytes
  std::map<std::string, size_t, std::less<>> index_;
  std::map<std::string, std::string> metadata_;
  std::shared_ptr<Storage> bytes_;  // the whole file
  int64_t data_begin_ = 0;
};

/// The checks of Safetensors on a header alone, for a file with `data_bytes` bytes after it. `name` is what errors call it.
struct SafetensorsHeader {
  std::vector<Safetensors::Entry> entries;
  std::map<std::string, std::string> metadata;
};
SafetensorsHeader parse_safetensors_header(std::string_view name, std::string_view json, int64_t data_bytes);

struct NamedTensor {
  std::string name;
  Tensor tensor;
};

/// Writes tensors of any device and dtype as one file, atomically. Data are ordered by size of element, largest first (so that all
/// are aligned), then as given. Tensors are brought to the host one at a time. Error for a repeated or reserved name.
void write_safetensors(Context& ctx, const Path& path, const std::vector<NamedTensor>& tensors,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace braid
