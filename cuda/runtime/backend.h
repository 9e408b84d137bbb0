// The CUDA side of core's DeviceBackend, and what only cuda/runtime may ask of it.
#pragma once
#include <map>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/transfers.h"
#include "cuda/runtime/arena.h"
#include "cuda/runtime/memory.h"
#include "cuda/runtime/runtime.h"
#include "cuda/runtime/staging.h"

namespace braid::cuda {

/// Stream-ordered device memory, with counts of what is held by whom.
class CudaBackend final : public DeviceBackend, public DeviceTransfers {
 public:
  void* allocate(size_t bytes, Stream stream) override;
  void release(void* pointer, size_t bytes, Stream stream) noexcept override;
  void copy(void* to, const void* from, size_t bytes, CopyKind kind, Stream stream) override;
  void upload(void* to, const void* from, size_t bytes, Stream stream) override { staging_.upload(to, from, bytes, stream); }
  std::unique_ptr<PendingRead> read(const void* from, size_t bytes, Stream stream) override { return staging_.read(from, bytes, stream); }
  std::unique_ptr<Moment> mark(Stream stream) override;
  void fill(void* to, uint8_t value, size_t bytes, Stream stream) override;
  void convert(void* to, DType to_dtype, const void* from, DType from_dtype, int64_t count, bool add, Stream stream) override;
  void synchronize(Stream stream) override;
  int64_t peak_bytes(Device device) override;

  MemoryUse use(int index);
  std::vector<HeldBytes> held(int index, bool at_peak);
  void reset_peak(int index);

  /// Until end_arena, tensors made on this stream live in `arena`, which is kept as long as one of them.
  void begin_arena(Stream stream, std::shared_ptr<Arena> arena);
  void end_arena();

 private:
  struct Use {
    int64_t used = 0, peak = 0;
    std::map<std::string_view, int64_t> by_owner, at_peak;
    bool at_peak_is_stale = false;  // by_owner was the peak's until the next release
    std::unordered_map<const void*, std::string_view> owner_of;
  };
  struct ArenaUse {
    std::shared_ptr<Arena> arena;
    int64_t live = 0;
  };
  static int64_t free_bytes(int index);
  static std::vector<HeldBytes> sorted(const std::map<std::string_view, int64_t>& by_owner);
  static void count(Use& use, int64_t bytes, std::string_view owner);
  [[noreturn]] void report_out_of_memory(size_t bytes, Stream stream);

  std::mutex mutex_;
  std::map<int, Use> uses_;
  Staging staging_;
  std::vector<ArenaUse> arenas_;  // those with live tensors, and the one being recorded into
  Arena* recording_ = nullptr;
  const void* recording_stream_ = nullptr;
};

/// Outlives every tensor, static ones included.
CudaBackend& backend();

}  // namespace braid::cuda
