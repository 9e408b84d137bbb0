// Pinned host memory through which small transfers pass, so that the host waits for none of them.
#pragma once
#include <cuda_runtime.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <vector>

#include "core/transfers.h"

namespace braid::cuda {

class Staging {
 public:
  /// Device bytes become the host's, as they are now; the host's may change at once.
  void upload(void* to, const void* from, size_t bytes, Stream stream);
  /// Starts to read device bytes.
  std::unique_ptr<PendingRead> read(const void* from, size_t bytes, Stream stream);

 private:
  struct Block {
    std::byte* data = nullptr;
    size_t capacity = 0;
    cudaEvent_t done = nullptr;          // of the block's last transfer
    std::atomic<bool> reserved = false;  // held by a PendingRead
  };
  class Read;

  /// A block of at least `bytes` whose last transfer is done; waits for one rather than pin more than kMostPinned.
  Block& take(size_t bytes);
  static constexpr size_t kSmallest = 1 << 12, kPiece = 16 << 20, kMostPinned = 128 << 20;

  std::mutex mutex_;
  std::vector<std::unique_ptr<Block>> blocks_;
  size_t pinned_ = 0;
};

}  // namespace braid::cuda
