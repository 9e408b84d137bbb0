// Transfers between host and device for which the host does not wait, moments of a device's work, and what is known of its memory.
#pragma once
#include <memory>

#include "core/device.h"

namespace braid {

/// Bytes on their way from a device to the host.
class PendingRead {
 public:
  virtual ~PendingRead() = default;
  /// Waits for them, and for no work that was given to the stream later.
  virtual const std::byte* wait() = 0;
};

/// When a stream's work got to a point.
class Moment {
 public:
  virtual ~Moment() = default;
  /// From `earlier`, a moment of the same device, to this one; waits until this one has come.
  virtual double ms_since(const Moment& earlier) const = 0;
};

class DeviceTransfers {
 public:
  virtual ~DeviceTransfers() = default;
  /// Host to device: the host's bytes may change as soon as the call returns.
  virtual void upload(void* to, const void* from, size_t bytes, Stream stream) = 0;
  /// Starts to read device bytes, as they are when the stream gets there.
  virtual std::unique_ptr<PendingRead> read(const void* from, size_t bytes, Stream stream) = 0;
  /// The moment at which the stream gets there, by the device's own clock; on the CPU it is now.
  virtual std::unique_ptr<Moment> mark(Stream stream) = 0;
  /// Most bytes held at once by allocations on a device; 0 where nobody counts.
  virtual int64_t peak_bytes(Device device) = 0;
};

/// Throws Error for a device that this build or machine does not have.
DeviceTransfers& transfers_of(Device device);
/// Makes `transfers` those of CUDA devices (called once by cuda/runtime; they must outlive every tensor).
void set_cuda_transfers(DeviceTransfers* transfers);

}  // namespace braid
