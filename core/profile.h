// Where the time of a computation goes, by operator.
#pragma once
#include <chrono>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>

namespace braid {

/// Filled by apply() and by backward while a context points to it. Times are of the calling thread: on a device that works behind
/// the caller's back they are the times of launching.
struct Profile {
  struct Entry {
    double forward_ms = 0, backward_ms = 0;
    int64_t num_calls = 0;
  };
  std::map<std::string, Entry, std::less<>> ops;

  Entry& entry(std::string_view op) {
    const auto found = ops.find(op);
    return found != ops.end() ? found->second : ops[std::string(op)];
  }
};

/// Adds the time of its own life to `to` (null: measures nothing).
class ScopedTime {
 public:
  explicit ScopedTime(double* to) : to_(to) {
    if (to_) start_ = std::chrono::steady_clock::now();
  }
  ~ScopedTime() {
    if (to_) *to_ += std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start_).count();
  }
  ScopedTime(const ScopedTime&) = delete;
  ScopedTime& operator=(const ScopedTime&) = delete;

 private:
  double* to_;
  std::chrono::steady_clock::time_point start_;
};

}  // namespace braid
