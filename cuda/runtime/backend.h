// The CUDA side of core's DeviceBackend, and what only cuda/runtime may ask of it.
#pragma once
#include <map>
#include <mutex>
#include <string_view>
#include <vector>

#include "core/memory_accounts.h"
#include "core/transfers.h"
#include "cuda/runtime/arena.h"
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
  /// Of a device; they live as long as the process.
  MemoryAccounts& accounts(int index);

  /// Until end_arena, tensors made on this stream live in `arena`, which is kept as long as one of them.
  void begin_arena(Stream stream, std::shared_ptr<Arena> arena);
  void end_arena();

 private:
  struct ArenaUse {
    std::shared_ptr<Arena> arena;
    int64_t live = 0;
  };
  /// Whether memory of a graph held the bytes at `pointer`, to which they went back.
  bool released_to_arena(void* pointer, size_t bytes);

  std::mutex mutex_;
  std::map<int, MemoryAccounts> accounts_;
  Staging staging_;
  std::vector<ArenaUse> arenas_;  // those with live tensors, and the one being recorded into
  Arena* recording_ = nullptr;
  const void* recording_stream_ = nullptr;
};

/// Throws Error: that `who` asked for more than there is, who holds what, and what needs less.
[[noreturn]] void fail_out_of_memory(int index, std::string_view who, size_t bytes, const MemoryAccounts& accounts);

/// Outlives every tensor, static ones included.
CudaBackend& backend();

}  // namespace braid::cuda
