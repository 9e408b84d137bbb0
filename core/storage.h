// Owned bytes on one device.
#pragma once
#include <memory>

#include "core/device.h"

namespace braid {

/// Bytes on one device, released in the order of the stream they were made on. Not copyable: share it by pointer.
class Storage {
 public:
  /// Uninitialised bytes. `guarded` (tests) fills them with NaN patterns and lays guard bytes on both sides.
  static std::shared_ptr<Storage> make(int64_t bytes, Stream stream, bool guarded = false);
  /// Somebody else's bytes, kept alive by `owner` (a mapped file, a framework's buffer).
  static std::shared_ptr<Storage> wrap(void* data, int64_t bytes, Device device, std::shared_ptr<void> owner);
  ~Storage();
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  std::byte* data() const { return data_; }
  int64_t size_bytes() const { return size_bytes_; }
  Device device() const { return stream_.device(); }
  /// The stream it was made on.
  Stream stream() const { return stream_; }
  /// True while no byte outside the storage was written (always true when it is not guarded).
  bool guards_intact() const;

 private:
  Storage() = default;
  std::byte* block_ = nullptr;  // what the backend gave; data_ lies kGuardBytes inside when guarded
  std::byte* data_ = nullptr;
  int64_t size_bytes_ = 0;
  int64_t block_bytes_ = 0;
  bool guarded_ = false;
  Stream stream_;
  std::shared_ptr<void> owner_;
};

/// Bytes of storages in host memory: now, and at most since the program began or reset_host_peak() was called.
struct HostMemory {
  int64_t used_bytes = 0, peak_bytes = 0;
};
HostMemory host_memory();
void reset_host_peak();

/// Number of guarded storages found damaged when they were released, since the program began.
int64_t num_damaged_storages();

}  // namespace braid
