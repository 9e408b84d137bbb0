#include "cuda/runtime/backend.h"

#include <algorithm>

#include "core/owner.h"
#include "cuda/runtime/check.h"
#include "cuda/runtime/convert.h"

namespace braid::cuda {
namespace {

class StreamMoment final : public Moment {
 public:
  explicit StreamMoment(Stream stream) { event_.record(stream); }
  double ms_since(const Moment& earlier) const override {
    event_.synchronize();
    return Event::elapsed_ms(static_cast<const StreamMoment&>(earlier).event_, event_);
  }

 private:
  Event event_;
};

/// Of the device, with what the pool has of it and nobody holds.
int64_t free_bytes(int index) {
  size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  cudaMemPool_t pool;
  uint64_t reserved = 0, used = 0;
  check(cudaDeviceGetDefaultMemPool(&pool, index), "cudaDeviceGetDefaultMemPool");
  check(cudaMemPoolGetAttribute(pool, cudaMemPoolAttrReservedMemCurrent, &reserved), "cudaMemPoolGetAttribute");
  check(cudaMemPoolGetAttribute(pool, cudaMemPoolAttrUsedMemCurrent, &used), "cudaMemPoolGetAttribute");
  return static_cast<int64_t>(free + reserved - used);
}

}  // namespace

void* CudaBackend::allocate(size_t bytes, Stream stream) {
  const int index = stream.device().index;
  MemoryAccounts* counted = nullptr;
  {
    std::lock_guard lock(mutex_);
    counted = &accounts_[index];
    if (recording_ && stream.native() == recording_stream_) {
      void* pointer = recording_->allocate(bytes);
      ++arenas_.back().live;
      return pointer;
    }
  }
  void* pointer = nullptr;
  const cudaError_t status = cudaMallocAsync(&pointer, std::max<size_t>(bytes, 1), native(stream));
  if (status == cudaErrorMemoryAllocation) fail_out_of_memory(index, current_owner(), bytes, *counted);
  check(status, "cudaMallocAsync");
  counted->add(pointer, static_cast<int64_t>(bytes), current_owner());
  return pointer;
}

void CudaBackend::release(void* pointer, size_t bytes, Stream stream) noexcept {
  if (released_to_arena(pointer, bytes)) return;
  accounts(stream.device().index).remove(pointer);  // before the driver may give its address to another thread
  cudaFreeAsync(pointer, native(stream));
}

bool CudaBackend::released_to_arena(void* pointer, size_t bytes) {
  std::lock_guard lock(mutex_);
  const auto use = std::find_if(arenas_.begin(), arenas_.end(), [&](const ArenaUse& each) { return each.arena->owns(pointer); });
  if (use == arenas_.end()) return false;
  use->arena->release(pointer, bytes);
  if (--use->live == 0 && use->arena.get() != recording_) arenas_.erase(use);
  return true;
}

void CudaBackend::copy(void* to, const void* from, size_t bytes, CopyKind kind, Stream stream) {
  if (bytes == 0) return;
  const auto native_kind = kind == CopyKind::host_to_device   ? cudaMemcpyHostToDevice
                           : kind == CopyKind::device_to_host ? cudaMemcpyDeviceToHost
                                                              : cudaMemcpyDeviceToDevice;
  check(cudaMemcpyAsync(to, from, bytes, native_kind, native(stream)), "cudaMemcpyAsync");
}

std::unique_ptr<Moment> CudaBackend::mark(Stream stream) { return std::make_unique<StreamMoment>(stream); }

void CudaBackend::fill(void* to, uint8_t value, size_t bytes, Stream stream) {
  if (bytes) check(cudaMemsetAsync(to, value, bytes, native(stream)), "cudaMemsetAsync");
}

void CudaBackend::convert(void* to, DType to_dtype, const void* from, DType from_dtype, int64_t count, bool add, Stream stream) {
  launch_convert(to, to_dtype, from, from_dtype, count, add, stream);
}

void CudaBackend::synchronize(Stream stream) { check(cudaStreamSynchronize(native(stream)), "cudaStreamSynchronize"); }

MemoryAccounts& CudaBackend::accounts(int index) {
  std::lock_guard lock(mutex_);
  return accounts_[index];
}

MemoryUse CudaBackend::use(int index) {
  const MemoryAccounts& counted = accounts(index);
  return {counted.used_bytes(), counted.peak_bytes(), free_bytes(index)};
}

int64_t CudaBackend::peak_bytes(Device device) { return accounts(device.index).peak_bytes(); }

void CudaBackend::begin_arena(Stream stream, std::shared_ptr<Arena> arena) {
  std::lock_guard lock(mutex_);
  recording_ = arena.get();
  recording_stream_ = stream.native();
  arenas_.push_back({std::move(arena), 0});
}

void CudaBackend::end_arena() {
  std::lock_guard lock(mutex_);
  const auto use = std::find_if(arenas_.begin(), arenas_.end(), [&](const ArenaUse& each) { return each.arena.get() == recording_; });
  if (use != arenas_.end() && use->live == 0) arenas_.erase(use);
  recording_ = nullptr;
  recording_stream_ = nullptr;
}

void fail_out_of_memory(int index, std::string_view who, size_t bytes, const MemoryAccounts& accounts) {
  cudaGetLastError();
  fail(Device{DeviceKind::cuda, index}, ": out of memory: ", who, " asked for ", bytes, " bytes; ", accounts.summary(), "; free ", free_bytes(index),
       "; ", advice_on_memory(accounts.held_by(kOwnerGradients) > 0));
}

CudaBackend& backend() {
  static CudaBackend* instance = new CudaBackend;
  return *instance;
}

}  // namespace braid::cuda
