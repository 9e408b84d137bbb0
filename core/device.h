// Devices, streams and the memory interface a device backend implements.
#pragma once
#include <cstddef>
#include <cstdint>
#include <ostream>

#include "core/dtype.h"

namespace braid {

enum class DeviceKind : uint8_t { cpu, cuda };

struct Device {
  DeviceKind kind = DeviceKind::cpu;
  int index = 0;
  friend bool operator==(const Device&, const Device&) = default;
};
inline std::ostream& operator<<(std::ostream& out, const Device& device) {
  if (device.kind == DeviceKind::cpu) return out << "cpu";
  return out << "cuda:" << device.index;
}

/// An ordered queue of work on one device. On the CPU work is done when the call returns and the handle is null.
class Stream {
 public:
  Stream() = default;
  Stream(Device device, void* native) : device_(device), native_(native) {}
  explicit Stream(int) = delete;  // a stream is never a number
  Device device() const { return device_; }
  void* native() const { return native_; }

 private:
  Device device_;
  void* native_ = nullptr;
};

enum class CopyKind : uint8_t { host_to_device, device_to_host, device_to_device };

/// The little that core itself needs of a device. All calls are ordered on the stream given; allocations are 256-byte aligned.
class DeviceBackend {
 public:
  virtual ~DeviceBackend() = default;
  virtual void* allocate(size_t bytes, Stream stream) = 0;  // throws Error when out of memory
  virtual void release(void* pointer, size_t bytes, Stream stream) noexcept = 0;
  virtual void copy(void* to, const void* from, size_t bytes, CopyKind kind, Stream stream) = 0;
  virtual void fill(void* to, uint8_t value, size_t bytes, Stream stream) = 0;
  /// to[i] = from[i], or to[i] += from[i], converting between floating types (rounded to nearest even).
  virtual void convert(void* to, DType to_dtype, const void* from, DType from_dtype, int64_t count, bool add, Stream stream) = 0;
  virtual void synchronize(Stream stream) = 0;
};

/// The backend of a device. Throws Error for a device that this build or machine does not have.
DeviceBackend& backend_of(Device device);

/// Makes `backend` that of CUDA devices (called once by cuda/runtime; it must outlive every tensor).
void set_cuda_backend(DeviceBackend* backend);

}  // namespace braid
