#include "core/transfers.h"

#include <chrono>
#include <cstring>
#include <vector>

namespace braid {
namespace {

class HostRead final : public PendingRead {
 public:
  HostRead(const void* from, size_t bytes) : bytes_(bytes) {
    if (bytes) std::memcpy(bytes_.data(), from, bytes);
  }
  const std::byte* wait() override { return bytes_.data(); }

 private:
  std::vector<std::byte> bytes_;
};

class HostMoment final : public Moment {
 public:
  double ms_since(const Moment& earlier) const override {
    return std::chrono::duration<double, std::milli>(time_ - static_cast<const HostMoment&>(earlier).time_).count();
  }

 private:
  std::chrono::steady_clock::time_point time_ = std::chrono::steady_clock::now();
};

class HostTransfers final : public DeviceTransfers {
 public:
  void upload(void* to, const void* from, size_t bytes, Stream) override {
    if (bytes) std::memcpy(to, from, bytes);
  }
  std::unique_ptr<PendingRead> read(const void* from, size_t bytes, Stream) override { return std::make_unique<HostRead>(from, bytes); }
  std::unique_ptr<Moment> mark(Stream) override { return std::make_unique<HostMoment>(); }
  int64_t peak_bytes(Device) override { return 0; }
};

DeviceTransfers* cuda_transfers = nullptr;

}  // namespace

DeviceTransfers& transfers_of(Device device) {
  static HostTransfers host;
  if (device.kind == DeviceKind::cpu) return host;
  BRAID_CHECK(cuda_transfers, device, ": this build or machine has no CUDA device");
  return *cuda_transfers;
}

void set_cuda_transfers(DeviceTransfers* transfers) { cuda_transfers = transfers; }

}  // namespace braid
