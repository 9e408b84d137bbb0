// HDF5 files: owners of the C library's handles, and errors of one line with the file's path and the library's reason.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/context.h"
#include "io/file.h"

namespace braid {

/// A handle of the HDF5 library, shared by its copies and closed with the last of them.
class Hdf5Handle {
 public:
  Hdf5Handle() = default;
  /// Takes the handle over. Error "`what`: the library's reason" when it is not one (negative).
  Hdf5Handle(int64_t id, const std::string& what);
  int64_t id() const { return id_ ? *id_ : -1; }

 private:
  std::shared_ptr<const int64_t> id_;
};

struct Hdf5FileState;

/// What carries attributes: a group or a dataset. T of attributes: int64_t, double or std::string (bool: use int64_t).
/// Errors name file, object and attribute. The library serves one thread at a time; one file's objects belong to one thread.
class Hdf5Object {
 public:
  bool has_attribute(const std::string& name) const;
  template <class T>
  T attribute(const std::string& name) const;
  /// Writes it, over an older one of this name too.
  template <class T>
  void set_attribute(const std::string& name, const T& value);
  /// "file.h5: a/b", for messages.
  std::string name() const;

 protected:
  Hdf5Object() = default;
  Hdf5Object(Hdf5Handle handle, std::string path, std::shared_ptr<Hdf5FileState> file)
      : file_(std::move(file)), handle_(std::move(handle)), path_(std::move(path)) {}
  std::shared_ptr<Hdf5FileState> file_;
  Hdf5Handle handle_;
  std::string path_;  // within the file
};

/// Numbers on disk. T of reads and writes: uint8_t, uint16_t, uint32_t, uint64_t, int32_t, int64_t, float, double.
class Hdf5Dataset : public Hdf5Object {
 public:
  const std::vector<int64_t>& extents() const { return extents_; }
  /// Number of elements.
  int64_t size() const;
  /// "u8", "u16", "u32", "u64", "i8", "i16", "i32", "i64", "f32", "f64", or "other".
  const std::string& type_name() const { return type_name_; }

  /// Elements [begin, begin + count) of a 1-D dataset. Integers of any width are converted (values out of T's range become its
  /// nearest); Error between integers and floating numbers, or when the range lies outside.
  template <class T>
  void read(int64_t begin, int64_t count, T* to) const;
  /// Adds elements at the end of a 1-D dataset made by create_growing.
  template <class T>
  void append(const T* from, int64_t count);

 private:
  friend class Hdf5Group;
  Hdf5Dataset(Hdf5Handle handle, std::string path, std::shared_ptr<Hdf5FileState> file);
  void transfer(int64_t begin, int64_t count, int64_t memory_type, void* to, const void* from) const;
  void read_whole(DType dtype, void* to) const;
  std::vector<int64_t> extents_;
  std::string type_name_;
};

class Hdf5Group : public Hdf5Object {
 public:
  /// Names of what the group holds, sorted.
  std::vector<std::string> names() const;
  /// `path` may go through groups: "a/b/c".
  bool contains(const std::string& path) const;
  Hdf5Group group(const std::string& path) const;
  /// Makes the groups on the way, too.
  Hdf5Group create_group(const std::string& path);
  /// Error when absent, not numbers, kept outside the file, or claiming more elements than the file's bytes could hold.
  Hdf5Dataset dataset(const std::string& path) const;
  /// An empty 1-D dataset of T that append() grows; chunks of `chunk` elements, compressed (deflate 1–9; 0: not), with checksums.
  template <class T>
  Hdf5Dataset create_growing(const std::string& path, int64_t chunk, int deflate);

  /// A tensor of any dtype, rank and device, whole; f16 and bf16 are stored as their bits with an attribute `dtype`. Groups on the
  /// way are made. Values carry checksums.
  void write_tensor(Context& ctx, const std::string& path, const Tensor& tensor);
  /// On the context's device, with the dtype it was written with.
  Tensor read_tensor(Context& ctx, const std::string& path) const;
  /// Into a contiguous tensor; Error when shape or dtype differ.
  void read_tensor_into(Context& ctx, const std::string& path, const Tensor& to) const;

 protected:
  Hdf5Group() = default;
  Hdf5Group(Hdf5Handle handle, std::string path, std::shared_ptr<Hdf5FileState> file)
      : Hdf5Object(std::move(handle), std::move(path), std::move(file)) {}
  std::string joined(const std::string& path) const;
};

/// A file; as a group, its root. Metadata are written with checksums (format of HDF5 1.10), so damage is found, not followed.
class Hdf5File : public Hdf5Group {
 public:
  static Hdf5File open(const Path& path);
  /// A new file, in place of one that is there. Write to AtomicPath::temporary(); errors call it `shown`.
  static Hdf5File create(const Path& path, const Path& shown);
  static Hdf5File create(const Path& path) { return create(path, path); }
  /// Writes all that is pending and closes; no object of the file may be used afterwards. Error when any write failed (disk full).
  /// Without it the file closes with the last of its objects, but cannot report.
  void close();

 private:
  explicit Hdf5File(const std::shared_ptr<Hdf5FileState>& state);
};

}  // namespace braid
