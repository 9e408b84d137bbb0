#include "train/metrics.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <locale>
#include <nlohmann/json.hpp>
#include <sstream>

#include "core/error.h"
#include "io/file.h"

namespace braid {
namespace {

using OrderedJson = nlohmann::ordered_json;

/// The step of a line, or −1 when the line is not one of ours.
int64_t step_of(std::string_view line) {
  const auto json = nlohmann::json::parse(line, nullptr, false);
  if (!json.is_object() || !json.contains("step") || !json["step"].is_number_integer()) return -1;
  return json["step"].get<int64_t>();
}

std::string fixed(double value, int digits) {
  std::ostringstream out;
  out.imbue(std::locale::classic());
  out.setf(std::ios::fixed);
  out.precision(digits);
  out << value;
  return out.str();
}

std::string general(double value, int digits) {
  std::ostringstream out;
  out.imbue(std::locale::classic());
  out.precision(digits);
  out << value;
  return out.str();
}

std::string progress_text(const StepReport& report, int64_t total_steps, double seconds_per_step) {
  std::string text = "step " + std::to_string(report.step) + "/" + std::to_string(total_steps) + "  loss " + fixed(report.loss, 4);
  if (report.val_loss) text += "  val " + fixed(*report.val_loss, 4);
  text +=
      "  lr " + general(report.learning_rate, 3) + "  norm " + general(report.grad_norm, 3) + "  " + short_number(report.tokens_per_s) + " tokens/s";
  if (report.mfu > 0) text += "  mfu " + fixed(100 * report.mfu, 1) + " %";
  text += "  " + short_number(static_cast<double>(report.memory_bytes)) + "B";
  text += "  " + short_duration(seconds_per_step * static_cast<double>(std::max<int64_t>(0, total_steps - report.step))) + " left";
  return report.skipped ? text + "  SKIPPED" : text;
}

}  // namespace

std::string to_json_line(const StepReport& report) {
  OrderedJson json;
  json["step"] = report.step;
  json["tokens"] = report.tokens;
  const auto number = [&](const char* key, double value) { json[key] = std::isfinite(value) ? OrderedJson(value) : OrderedJson(nullptr); };
  number("loss", report.loss);
  number("lr", report.learning_rate);
  number("grad_norm", report.grad_norm);
  number("tokens_per_s", report.tokens_per_s);
  number("mfu", report.mfu);
  json["memory_bytes"] = report.memory_bytes;
  number("time", report.time);
  if (report.skipped) json["skipped"] = true;
  if (report.val_loss) number("val_loss", *report.val_loss);
  return json.dump();
}

MetricsFile::MetricsFile(const std::filesystem::path& path, int64_t resumed_step) : path_(path) {
  int64_t kept_bytes = 0;
  if (resumed_step > 0 && std::filesystem::exists(path_)) {
    const std::string text = read_file(path_, int64_t{1} << 40);
    for (size_t begin = 0, end; (end = text.find('\n', begin)) != std::string::npos; begin = end + 1) {
      const int64_t step = step_of(std::string_view(text).substr(begin, end - begin));
      if (step <= last_step_kept_ || step > resumed_step) break;
      last_step_kept_ = step;
      kept_bytes = static_cast<int64_t>(end) + 1;
    }
  }
  descriptor_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
  if (descriptor_ < 0) fail_path("cannot write", path_, errno);
  if (::ftruncate(descriptor_, kept_bytes) != 0 || ::lseek(descriptor_, 0, SEEK_END) < 0) {
    const int error = errno;
    ::close(descriptor_);
    fail_path("cannot write", path_, error);
  }
}

MetricsFile::~MetricsFile() { ::close(descriptor_); }

void MetricsFile::append(const StepReport& report) {
  const std::string line = to_json_line(report) + '\n';
  for (size_t done = 0; done < line.size();) {
    const ssize_t written = ::write(descriptor_, line.data() + done, line.size() - done);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail_path("cannot write", path_, errno);
    done += static_cast<size_t>(written);
  }
}

void MetricsFile::sync() {
  if (::fsync(descriptor_) != 0 && errno != EINVAL) fail_path("cannot write", path_, errno);
}

ProgressLine::ProgressLine(std::FILE* out, const Options& options) : out_(out), options_(options), live_(terminal_columns(::fileno(out)) > 0) {}

ProgressLine::~ProgressLine() { finish(); }

void ProgressLine::show(const StepReport& report) {
  const double tokens = report.tokens_per_s > 0 && report.step > 0 ? static_cast<double>(report.tokens) / static_cast<double>(report.step) : 0;
  const double seconds = tokens > 0 ? tokens / report.tokens_per_s : 0;
  seconds_per_step_ = shown_ ? 0.9 * seconds_per_step_ + 0.1 * seconds : seconds;
  const auto now = std::chrono::steady_clock::now();
  const double interval = live_ ? options_.live_interval_s : options_.log_interval_s;
  const bool due = !shown_ || std::chrono::duration<double>(now - last_shown_).count() >= interval;
  if (!due && report.step < options_.total_steps && !report.skipped && !report.val_loss) return;
  shown_ = true;
  last_shown_ = now;
  const std::string text = progress_text(report, options_.total_steps, seconds_per_step_);
  if (live_) std::fprintf(out_, "\r%s\x1b[K", fit_to_terminal(text, ::fileno(out_)).c_str());
  else std::fprintf(out_, "%s\n", text.c_str());
  line_open_ = live_;
  std::fflush(out_);
}

void ProgressLine::note(const std::string& text) {
  finish();
  std::fprintf(out_, "%s\n", text.c_str());
  std::fflush(out_);
}

void ProgressLine::finish() {
  if (line_open_) std::fputc('\n', out_);
  line_open_ = false;
  std::fflush(out_);
}

int64_t terminal_columns(int descriptor) {
  winsize size = {};
  return ::ioctl(descriptor, TIOCGWINSZ, &size) == 0 ? size.ws_col : 0;
}

std::string fit_to_terminal(std::string text, int descriptor) {
  const int64_t columns = terminal_columns(descriptor);
  if (columns > 0 && static_cast<int64_t>(text.size()) >= columns) text.resize(columns - 1);
  return text;
}

int64_t resident_bytes() {
  std::FILE* file = std::fopen("/proc/self/statm", "re");
  if (!file) return 0;
  long long total = 0, resident = 0;
  const int got = std::fscanf(file, "%lld %lld", &total, &resident);
  std::fclose(file);
  return got == 2 ? resident * ::sysconf(_SC_PAGESIZE) : 0;
}

std::string short_number(double value) {
  constexpr const char* kUnits[] = {"", "k", "M", "G", "T", "P"};
  int unit = 0;
  while (std::abs(value) >= 999.5 && unit < 5) {
    value /= 1000;
    ++unit;
  }
  const double size = std::abs(value);
  return fixed(value, unit == 0 || size >= 99.95 ? 0 : size >= 9.995 ? 1 : 2) + kUnits[unit];
}

std::string short_duration(double seconds) {
  const int64_t whole = std::llround(std::max(0.0, seconds));
  const auto two = [](int64_t value) { return (value < 10 ? "0" : "") + std::to_string(value); };
  if (whole < 60) return std::to_string(whole) + "s";
  if (whole < 3600) return std::to_string(whole / 60) + "m" + two(whole % 60) + "s";
  return std::to_string(whole / 3600) + "h" + two(whole / 60 % 60) + "m";
}

}  // namespace braid
