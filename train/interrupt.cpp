#include "train/interrupt.h"

#include <atomic>

namespace braid {
namespace {

std::atomic<bool> flag{false};
static_assert(std::atomic<bool>::is_always_lock_free, "the flag is set by a signal handler");

void set_flag(int) { flag.store(true); }

}  // namespace

InterruptGuard::InterruptGuard() {
  flag.store(false);
  struct sigaction action {};
  action.sa_handler = set_flag;
  action.sa_flags = SA_RESETHAND | SA_RESTART;
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, &before_int_);
  sigaction(SIGTERM, &action, &before_term_);
}

InterruptGuard::~InterruptGuard() {
  sigaction(SIGINT, &before_int_, nullptr);
  sigaction(SIGTERM, &before_term_, nullptr);
}

bool interrupted() { return flag.load(); }

}  // namespace braid
