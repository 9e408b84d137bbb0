#include "train/cli/live_line.h"

#include <unistd.h>

#include <cstdio>

#include "train/metrics.h"

namespace braid::cli {
namespace {

constexpr std::chrono::milliseconds kLiveInterval(200), kLogInterval(10000);

}  // namespace

LiveLine::LiveLine() : live_(terminal_columns(STDERR_FILENO) > 0), last_(std::chrono::steady_clock::now()) {}

LiveLine::~LiveLine() {
  if (live_ && shown_) std::fputs("\r\033[K", stderr);
}

bool LiveLine::is_due() const { return std::chrono::steady_clock::now() - last_ >= (live_ ? kLiveInterval : kLogInterval); }

void LiveLine::show(const std::string& text) {
  if (!is_due()) return;
  last_ = std::chrono::steady_clock::now();
  if (live_) std::fprintf(stderr, "\r\033[K%s", fit_to_terminal(text, STDERR_FILENO).c_str());
  else std::fprintf(stderr, "%s\n", text.c_str());
  std::fflush(stderr);
  shown_ = true;
}

}  // namespace braid::cli
