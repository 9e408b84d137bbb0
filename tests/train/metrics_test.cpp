// What a run tells: metrics.jsonl and the progress line.
#include "train/metrics.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>

#include "io/file.h"
#include "tests/train/tiny_model.h"

namespace braid::testing {
namespace {

namespace fs = std::filesystem;

TEST(Metrics, AreCutToTheResumedStep) {
  const TemporaryDirectory directory;
  const fs::path path = directory.path() / "metrics.jsonl";
  write_file(path, "{\"step\":1}\n{\"step\":2}\n{\"step\":3}\n{\"ste");
  {
    MetricsFile file(path, 2);
    EXPECT_EQ(file.last_step_kept(), 2);
    StepReport report;
    report.step = 3;
    report.loss = std::numeric_limits<double>::quiet_NaN();
    report.skipped = true;
    file.append(report);
    file.sync();
  }
  const std::string text = read_file(path);
  EXPECT_EQ(text.rfind("{\"step\":1}\n{\"step\":2}\n{\"step\":3,\"tokens\":0,\"loss\":null,", 0), 0u) << text;
  EXPECT_NE(text.find("\"skipped\":true}\n"), std::string::npos);
  EXPECT_EQ(MetricsFile(path, 9).last_step_kept(), 3);
  MetricsFile(path, 0);
  EXPECT_EQ(read_file(path), "");
  EXPECT_NE(error_of([&] { MetricsFile(directory.path() / "absent" / "metrics.jsonl", 0); }), "");
}

TEST(Progress, IsPlainLinesInALogAtABoundedRate) {
  const TemporaryDirectory directory;
  const fs::path path = directory.path() / "log";
  std::FILE* out = std::fopen(path.c_str(), "w");
  {
    ProgressLine line(out, {.total_steps = 1000});
    for (int64_t step = 1; step <= 1000; ++step) {
      StepReport report;
      report.step = step;
      report.tokens = 100 * step;
      report.tokens_per_s = 50;
      report.memory_bytes = 1234567890;
      line.show(report);
    }
    line.note("done");
  }
  std::fclose(out);
  const std::string text = read_file(path);
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 3) << text;
  EXPECT_EQ(text.find('\r'), std::string::npos);
  EXPECT_NE(text.find("step 1/1000  loss 0.0000"), std::string::npos) << text;
  EXPECT_NE(text.find("1.23GB  33m18s left"), std::string::npos) << text;
  EXPECT_EQ(short_number(999), "999");
  EXPECT_EQ(short_number(12345), "12.3k");
  EXPECT_EQ(short_duration(7512), "2h05m");
}

/// What a live line writes to a terminal of `columns` columns (0: of unknown width) in two steps.
std::string shown_on_terminal(unsigned short columns) {
  const int terminal = ::posix_openpt(O_RDWR | O_NOCTTY);
  EXPECT_EQ(::grantpt(terminal), 0);
  EXPECT_EQ(::unlockpt(terminal), 0);
  std::FILE* out = std::fopen(::ptsname(terminal), "w");
  EXPECT_TRUE(out);
  const winsize size = {.ws_row = 24, .ws_col = columns, .ws_xpixel = 0, .ws_ypixel = 0};
  EXPECT_EQ(::ioctl(terminal, TIOCSWINSZ, &size), 0);
  {
    ProgressLine line(out, {.total_steps = 2, .live_interval_s = 0});
    for (int64_t step = 1; step <= 2; ++step) {
      StepReport report;
      report.step = step, report.tokens = 1000 * step, report.tokens_per_s = 50, report.mfu = 0.5, report.memory_bytes = 1234567890;
      line.show(report);
    }
  }
  std::string text(4096, '\0');
  const ssize_t count = ::read(terminal, text.data(), text.size());
  text.resize(std::max<ssize_t>(0, count));
  std::fclose(out);
  ::close(terminal);
  return text;
}

TEST(Progress, StaysOnOneRowOfATerminal) {
  const std::string wide = shown_on_terminal(200), narrow = shown_on_terminal(60);
  const auto widest = [](const std::string& text) {
    size_t most = 0;
    for (size_t begin = 0, end; (end = text.find("\x1b[K", begin)) != std::string::npos; begin = end + 3)
      most = std::max(most, end - text.find('\r', begin) - 1);
    return most;
  };
  EXPECT_GT(widest(wide), 60u) << wide;
  EXPECT_EQ(widest(narrow), 59u) << narrow;
  const std::string log = shown_on_terminal(0);
  EXPECT_EQ(log.find("\x1b"), std::string::npos) << log;
  EXPECT_EQ(std::count(log.begin(), log.end(), '\n'), 2) << "a line a step";
  EXPECT_EQ(std::count(narrow.begin(), narrow.end(), '\n'), 1) << "the line's end";
}

}  // namespace
}  // namespace braid::testing
