#include "cuda/runtime/backend.h"

#include <algorithm>
#include <sstream>

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

}  // namespace

void* CudaBackend::allocate(size_t bytes, Stream stream) {
  std::lock_guard lock(mutex_);
  if (recording_ && stream.native() == recording_stream_) {
    void* pointer = recording_->allocate(bytes);
    ++arenas_.back().live;
    return pointer;
  }
  void* pointer = nullptr;
  const cudaError_t status = cudaMallocAsync(&pointer, std::max<size_t>(bytes, 1), native(stream));
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    report_out_of_memory(bytes, stream);
  }
  check(status, "cudaMallocAsync");
  Use& use = uses_[stream.device().index];
  use.owner_of[pointer] = current_owner();
  count(use, static_cast<int64_t>(bytes), current_owner());
  return pointer;
}

void CudaBackend::count(Use& use, int64_t bytes, std::string_view owner) {
  use.used += bytes;
  use.by_owner[owner] += bytes;
  if (use.used < use.peak) return;
  use.peak = use.used;
  use.at_peak_is_stale = true;
}

void CudaBackend::release(void* pointer, size_t bytes, Stream stream) noexcept {
  std::lock_guard lock(mutex_);
  for (auto use = arenas_.begin(); use != arenas_.end(); ++use) {
    if (!use->arena->owns(pointer)) continue;
    use->arena->release(pointer, bytes);
    if (--use->live == 0 && use->arena.get() != recording_) arenas_.erase(use);
    return;
  }
  cudaFreeAsync(pointer, native(stream));
  Use& use = uses_[stream.device().index];
  if (use.at_peak_is_stale) {
    use.at_peak = use.by_owner;  // the peak is over: this is what it was made of
    use.at_peak_is_stale = false;
  }
  use.used -= static_cast<int64_t>(bytes);
  const auto owner = use.owner_of.find(pointer);
  if (owner == use.owner_of.end()) return;
  use.by_owner[owner->second] -= static_cast<int64_t>(bytes);
  use.owner_of.erase(owner);
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

MemoryUse CudaBackend::use(int index) {
  std::lock_guard lock(mutex_);
  return {uses_[index].used, uses_[index].peak, free_bytes(index)};
}

int64_t CudaBackend::peak_bytes(Device device) {
  std::lock_guard lock(mutex_);
  return uses_[device.index].peak;
}

std::vector<HeldBytes> CudaBackend::held(int index, bool at_peak) {
  std::lock_guard lock(mutex_);
  const Use& use = uses_[index];
  return sorted(at_peak && !use.at_peak_is_stale ? use.at_peak : use.by_owner);
}

void CudaBackend::reset_peak(int index) {
  std::lock_guard lock(mutex_);
  Use& use = uses_[index];
  use.peak = use.used;
  use.at_peak_is_stale = true;
}

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

int64_t CudaBackend::free_bytes(int index) {
  size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  cudaMemPool_t pool;
  uint64_t reserved = 0, used = 0;
  check(cudaDeviceGetDefaultMemPool(&pool, index), "cudaDeviceGetDefaultMemPool");
  check(cudaMemPoolGetAttribute(pool, cudaMemPoolAttrReservedMemCurrent, &reserved), "cudaMemPoolGetAttribute");
  check(cudaMemPoolGetAttribute(pool, cudaMemPoolAttrUsedMemCurrent, &used), "cudaMemPoolGetAttribute");
  return static_cast<int64_t>(free + reserved - used);
}

std::vector<HeldBytes> CudaBackend::sorted(const std::map<std::string_view, int64_t>& by_owner) {
  std::vector<HeldBytes> result;
  for (const auto& [owner, bytes] : by_owner)
    if (bytes > 0) result.push_back({std::string(owner), bytes});
  std::stable_sort(result.begin(), result.end(), [](const HeldBytes& a, const HeldBytes& b) { return a.bytes > b.bytes; });
  return result;
}

void CudaBackend::report_out_of_memory(size_t bytes, Stream stream) {
  const Use& use = uses_[stream.device().index];
  const std::vector<HeldBytes> holders = sorted(use.by_owner);
  std::ostringstream list;
  list.imbue(std::locale::classic());
  for (size_t i = 0; i < std::min<size_t>(8, holders.size()); ++i) list << (i ? ", " : "") << holders[i].owner << " " << holders[i].bytes;
  fail(stream.device(), ": out of memory: ", current_owner(), " asked for ", bytes, " bytes; ", use.used, " are held (", list.str(), "), ",
       free_bytes(stream.device().index), " are free; fewer tokens per micro-batch or more recompute need less");
}

CudaBackend& backend() {
  static CudaBackend* instance = new CudaBackend;
  return *instance;
}

}  // namespace braid::cuda
