#include "cuda/runtime/staging.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "core/owner.h"
#include "cuda/runtime/check.h"

namespace braid::cuda {

class Staging::Read final : public PendingRead {
 public:
  explicit Read(Block& block) : block_(block) {}
  ~Read() override {
    cudaEventSynchronize(block_.done);  // nobody may overwrite the block before the device is through with it
    block_.reserved = false;
  }
  const std::byte* wait() override {
    check(cudaEventSynchronize(block_.done), "cudaEventSynchronize");
    return block_.data;
  }

 private:
  Block& block_;
};

void Staging::upload(void* to, const void* from, size_t bytes, Stream stream) {
  if (bytes == 0) return;
  cudaStreamCaptureStatus capturing = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(native(stream), &capturing), "cudaStreamIsCapturing");
  BRAID_CHECK(capturing == cudaStreamCaptureStatusNone, "cuda: host values cannot be uploaded inside a graph: a replay would not see them change");
  std::lock_guard lock(mutex_);
  for (size_t begin = 0; begin < bytes; begin += kPiece) {
    const size_t size = std::min(kPiece, bytes - begin);
    Block& block = take(size);
    std::memcpy(block.data, static_cast<const std::byte*>(from) + begin, size);
    check(cudaMemcpyAsync(static_cast<std::byte*>(to) + begin, block.data, size, cudaMemcpyHostToDevice, native(stream)), "cudaMemcpyAsync");
    check(cudaEventRecord(block.done, native(stream)), "cudaEventRecord");
  }
}

std::unique_ptr<PendingRead> Staging::read(const void* from, size_t bytes, Stream stream) {
  std::lock_guard lock(mutex_);
  Block& block = take(bytes);
  check(cudaMemcpyAsync(block.data, from, bytes, cudaMemcpyDeviceToHost, native(stream)), "cudaMemcpyAsync");
  check(cudaEventRecord(block.done, native(stream)), "cudaEventRecord");
  block.reserved = true;
  return std::make_unique<Read>(block);
}

Staging::Block& Staging::take(size_t bytes) {
  const size_t capacity = std::bit_ceil(std::max(bytes, kSmallest));
  Block* waiting = nullptr;
  for (const auto& block : blocks_) {
    if (block->reserved || block->capacity < bytes || block->capacity > 4 * capacity) continue;
    if (cudaEventQuery(block->done) == cudaSuccess) return *block;
    if (!waiting) waiting = block.get();
  }
  cudaGetLastError();  // "not ready" is no error
  if (waiting && pinned_ + capacity > kMostPinned) {
    check(cudaEventSynchronize(waiting->done), "cudaEventSynchronize");
    return *waiting;
  }
  auto block = std::make_unique<Block>();
  void* data = nullptr;
  const cudaError_t status = cudaHostAlloc(&data, capacity, cudaHostAllocDefault);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    fail("cuda: out of host memory: pinned staging (", current_owner(), ") asked for ", capacity, " bytes; in use ", pinned_,
         ", all of them pinned; let this process have or pin more of the host's memory");
  }
  check(status, "cudaHostAlloc");
  block->data = static_cast<std::byte*>(data);
  block->capacity = capacity;
  check(cudaEventCreateWithFlags(&block->done, cudaEventDisableTiming), "cudaEventCreate");
  pinned_ += capacity;
  return *blocks_.emplace_back(std::move(block));
}

}  // namespace braid::cuda
