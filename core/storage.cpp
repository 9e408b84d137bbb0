#include "core/storage.h"

#include <atomic>
#include <vector>

namespace braid {
namespace {

constexpr int64_t kGuardBytes = 256;
constexpr uint8_t kGuardValue = 0xA5;
constexpr uint8_t kPoisonValue = 0xFF;  // all ones is a NaN in every floating type

std::atomic<int64_t> damaged_storages{0};
std::atomic<int64_t> host_used{0}, host_peak{0};

void count_on_host(int64_t bytes) {
  const int64_t used = host_used.fetch_add(bytes) + bytes;
  for (int64_t peak = host_peak.load(); used > peak && !host_peak.compare_exchange_weak(peak, used);) continue;
}

}  // namespace

HostMemory host_memory() { return {host_used.load(), host_peak.load()}; }
void reset_host_peak() { host_peak.store(host_used.load()); }

std::shared_ptr<Storage> Storage::make(int64_t bytes, Stream stream, bool guarded) {
  BRAID_CHECK(bytes >= 0, "storage: a size must not be negative, got ", bytes);
  std::shared_ptr<Storage> storage(new Storage);
  DeviceBackend& backend = backend_of(stream.device());
  storage->stream_ = stream;
  storage->size_bytes_ = bytes;
  storage->guarded_ = guarded;
  storage->block_bytes_ = bytes + (guarded ? 2 * kGuardBytes : 0);
  if (storage->block_bytes_ == 0) return storage;
  storage->block_ = static_cast<std::byte*>(backend.allocate(storage->block_bytes_, stream));
  if (storage->device().kind == DeviceKind::cpu) count_on_host(storage->block_bytes_);
  storage->data_ = storage->block_ + (guarded ? kGuardBytes : 0);
  if (guarded) {
    backend.fill(storage->block_, kGuardValue, storage->block_bytes_, stream);
    backend.fill(storage->data_, kPoisonValue, bytes, stream);
  }
  return storage;
}

std::shared_ptr<Storage> Storage::wrap(void* data, int64_t bytes, Device device, std::shared_ptr<void> owner) {
  std::shared_ptr<Storage> storage(new Storage);
  storage->data_ = static_cast<std::byte*>(data);
  storage->size_bytes_ = bytes;
  storage->stream_ = Stream(device, nullptr);
  storage->owner_ = std::move(owner);
  return storage;
}

bool Storage::guards_intact() const {
  if (!guarded_) return true;
  DeviceBackend& backend = backend_of(stream_.device());
  std::vector<uint8_t> edges(2 * kGuardBytes);
  backend.copy(edges.data(), block_, kGuardBytes, CopyKind::device_to_host, stream_);
  backend.copy(edges.data() + kGuardBytes, data_ + size_bytes_, kGuardBytes, CopyKind::device_to_host, stream_);
  backend.synchronize(stream_);
  for (uint8_t edge : edges)
    if (edge != kGuardValue) return false;
  return true;
}

Storage::~Storage() {
  if (!block_) return;
  try {
    if (guarded_ && !guards_intact()) damaged_storages.fetch_add(1);
  } catch (const Error&) {  // at the program's end the driver may be gone before a static tensor
  }
  backend_of(stream_.device()).release(block_, block_bytes_, stream_);
  if (device().kind == DeviceKind::cpu) count_on_host(-block_bytes_);
}

int64_t num_damaged_storages() { return damaged_storages.load(); }

}  // namespace braid
