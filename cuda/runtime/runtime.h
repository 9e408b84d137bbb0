// CUDA devices behind the interfaces of core. This header includes no CUDA header: the rest of the engine may use it.
#pragma once
#include <string>

#include "core/context.h"

namespace braid::cuda {

/// Number of CUDA devices; 0 without a driver.
int num_devices();

struct DeviceFacts {
  std::string name;
  int num_multiprocessors = 0;
  int compute_capability = 0;  // 90 for 9.0
  int64_t memory_bytes = 0;
  int64_t l2_bytes = 0;
  int64_t shared_bytes_per_block = 0;
};
/// Throws Error when there is no such device.
const DeviceFacts& facts(int index);

/// A context on device `index` with a stream of its own and memory from a stream-ordered pool that keeps what it frees. Throws
/// Error when there is no such device or its compute capability is not one this build has code for.
Context make_context(int index = 0);

struct MemoryUse {
  int64_t used_bytes = 0;  // by live tensors
  int64_t peak_bytes = 0;  // most at once since the start or the last reset
  int64_t free_bytes = 0;  // on the device, the pool's own reserve included
};
MemoryUse memory_use(int index = 0);
/// From now on the peak is counted from what is used now.
void reset_peak_memory(int index = 0);

/// A point in a stream's work; elapsed times are the device's own.
class Event {
 public:
  Event();
  ~Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  void record(Stream stream);
  /// Stops the host until the event has happened.
  void synchronize() const;
  /// Milliseconds between two events that have happened.
  static double elapsed_ms(const Event& begin, const Event& end);

 private:
  void* native_ = nullptr;
};

/// Work recorded once and replayed as one launch. Nothing recorded may allocate sizes that change or wait for the host.
class Graph {
 public:
  Graph() = default;
  ~Graph();
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  /// Runs `body`, whose work on the context's stream is recorded, not done.
  void record(Context& ctx, FunctionRef<void()> body);
  void replay(Context& ctx) const;
  bool recorded() const { return executable_ != nullptr; }

 private:
  void* executable_ = nullptr;
};

}  // namespace braid::cuda
