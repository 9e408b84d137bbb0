// Asking a run to stop: the first SIGINT or SIGTERM sets a flag that training looks at between steps.
#pragma once
#include <csignal>

namespace braid {

/// While one lives, SIGINT and SIGTERM set a flag; a second signal has its usual effect. Puts the former handlers back. One at a time.
class InterruptGuard {
 public:
  InterruptGuard();
  ~InterruptGuard();
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;

 private:
  struct sigaction before_int_, before_term_;
};

/// True once a guarded signal came (until the next guard is made).
bool interrupted();

}  // namespace braid
