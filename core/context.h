// What every operation is given: where it runs and what it may use. There is no hidden global.
#pragma once
#include <memory>

#include "core/device.h"
#include "core/parallel.h"
#include "core/random.h"
#include "core/tensor.h"

namespace braid {

class Tape;
struct Profile;

/// Device, stream, threads, random state and the tape that records (null: nothing does). One per thread of control.
class Context {
 public:
  /// On the CPU, with a pool of its own of `num_threads` (0: every usable core).
  explicit Context(int num_threads = 1);
  Context(Stream stream, std::shared_ptr<ThreadPool> pool) : stream_(stream), pool_(std::move(pool)) {}

  Device device() const { return stream_.device(); }
  Stream stream() const { return stream_; }
  bool on_cpu() const { return device().kind == DeviceKind::cpu; }
  int num_threads() const { return pool_->num_threads(); }
  const std::shared_ptr<ThreadPool>& pool() const { return pool_; }

  /// See ThreadPool::parallel_for. Choose `grain` so that one range costs at least some ten microseconds.
  void parallel_for(int64_t count, int64_t grain, FunctionRef<void(int64_t, int64_t)> body) { pool_->parallel_for(count, grain, body); }

  /// Waits until all work of this context's stream is done.
  void synchronize() { backend_of(device()).synchronize(stream_); }

  Tape* tape = nullptr;              // records when set; not owned
  Profile* profile = nullptr;        // times operators when set; not owned
  Random random;                     // for what draws numbers on the fly
  bool guarded_allocations = false;  // tests: poison every allocation and watch its edges

 private:
  Stream stream_;
  std::shared_ptr<ThreadPool> pool_;
};

/// Sets a context's tape for a scope: WithTape none(ctx, nullptr) stops recording.
class WithTape {
 public:
  WithTape(Context& ctx, Tape* tape) : ctx_(ctx), before_(ctx.tape) { ctx.tape = tape; }
  ~WithTape() { ctx_.tape = before_; }
  WithTape(const WithTape&) = delete;
  WithTape& operator=(const WithTape&) = delete;

 private:
  Context& ctx_;
  Tape* before_;
};

}  // namespace braid
