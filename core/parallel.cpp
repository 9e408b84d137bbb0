#include "core/parallel.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace braid {
namespace {

thread_local bool inside_body = false;

int num_usable_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1u, std::thread::hardware_concurrency());
}

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

/// One job at a time. Workers spin a little for the next job, because a training step is hundreds of short ones, then sleep.
struct ThreadPool::State {
  static constexpr int kSpins = 2000;

  std::vector<std::thread> workers;
  std::mutex mutex, submit_mutex;
  std::condition_variable wake;
  std::atomic<uint64_t> generation{0};
  bool stop = false;

  const FunctionRef<void(int64_t, int64_t)>* body = nullptr;
  int64_t count = 0, grain = 1;
  std::atomic<int64_t> next{0};
  std::atomic<int> busy{0};
  std::exception_ptr error;

  void work() {
    inside_body = true;
    for (;;) {
      const int64_t begin = next.fetch_add(grain);
      if (begin >= count) break;
      try {
        (*body)(begin, std::min(count, begin + grain));
      } catch (...) {
        std::lock_guard lock(mutex);
        if (!error) error = std::current_exception();
        next.store(count);
      }
    }
    inside_body = false;
  }

  void run_worker() {
    uint64_t seen = 0;
    for (;;) {
      for (int spin = 0; spin < kSpins && generation.load() == seen; ++spin) relax();
      {
        std::unique_lock lock(mutex);
        wake.wait(lock, [&] { return generation.load() != seen; });
        if (stop) return;
        seen = generation.load();
      }
      work();
      busy.fetch_sub(1);
    }
  }
};

ThreadPool::ThreadPool(int num_threads) : state_(std::make_unique<State>()) {
  const int wanted = num_threads > 0 ? num_threads : num_usable_cores();
  for (int i = 1; i < wanted; ++i) state_->workers.emplace_back([this] { state_->run_worker(); });
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard lock(state_->mutex);
    state_->stop = true;
    state_->generation.fetch_add(1);
  }
  state_->wake.notify_all();
  for (std::thread& worker : state_->workers) worker.join();
}

int ThreadPool::num_threads() const { return static_cast<int>(state_->workers.size()) + 1; }

void ThreadPool::parallel_for(int64_t count, int64_t grain, FunctionRef<void(int64_t, int64_t)> body) {
  grain = std::max<int64_t>(1, grain);
  if (count <= grain || state_->workers.empty() || inside_body) {
    for (int64_t begin = 0; begin < count; begin += grain) body(begin, std::min(count, begin + grain));
    return;
  }
  State& state = *state_;
  std::lock_guard submit(state.submit_mutex);
  {
    std::lock_guard lock(state.mutex);
    state.body = &body;
    state.count = count;
    state.grain = grain;
    state.next.store(0);
    state.error = nullptr;
    state.busy.store(static_cast<int>(state.workers.size()));
    state.generation.fetch_add(1);
  }
  state.wake.notify_all();
  state.work();
  while (state.busy.load() != 0) relax();
  if (state.error) std::rethrow_exception(state.error);
}

}  // namespace braid
