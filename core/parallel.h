// Threads of one process. How work is cut never depends on how many threads there are, so results do not either.
#pragma once
#include <cstdint>
#include <memory>
#include <type_traits>

namespace braid {

/// A call to somebody's function object, without owning it.
template <class Signature>
class FunctionRef;
template <class... Args>
class FunctionRef<void(Args...)> {
 public:
  template <class F>
  requires(!std::is_same_v<std::remove_cvref_t<F>, FunctionRef>) FunctionRef(F&& function)  // NOLINT: made to be converted to
      : object_(const_cast<void*>(static_cast<const void*>(&function))),
        call_([](void* object, Args... args) { (*static_cast<std::remove_reference_t<F>*>(object))(args...); }) {}
  void operator()(Args... args) const { call_(object_, args...); }

 private:
  void* object_;
  void (*call_)(void*, Args...);
};

class ThreadPool {
 public:
  /// `num_threads` in all, the caller's own included; 0 means one per core this process may use.
  explicit ThreadPool(int num_threads = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const;

  /// Runs body(begin, end) for the ranges [0, grain), [grain, 2·grain), … of [0, count), in any order, on all threads; returns
  /// when all are done. The first exception thrown by a body is thrown on. A call from inside a body runs on its own thread.
  void parallel_for(int64_t count, int64_t grain, FunctionRef<void(int64_t, int64_t)> body);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace braid
