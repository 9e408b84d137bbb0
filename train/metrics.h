// What a run reports: one JSON object per step in a file, one live line on a terminal.
#pragma once
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <optional>
#include <string>

namespace braid {

/// One training step, as reported.
struct StepReport {
  int64_t step = 0;    // steps done, this one included
  int64_t tokens = 0;  // tokens seen by all ranks since the beginning
  double loss = 0;     // nats per target
  double learning_rate = 0;
  double grad_norm = 0;      // before clipping
  double tokens_per_s = 0;   // of this step alone, validation and saving left out; on a GPU by its own clock
  double mfu = 0;            // model FLOPs over the device's peak; 0 when either is unknown
  int64_t memory_bytes = 0;  // resident memory of the process; on a GPU the most held there at once
  double time = 0;           // seconds spent in training steps since the beginning, over all resumes
  bool skipped = false;      // no update was made (NaN or a spike)
  std::optional<double> val_loss;
};

/// The report as one line of JSON: step, tokens, loss, lr, grad_norm, tokens_per_s, mfu, memory_bytes, time; `skipped` and `val_loss` when
/// they apply. A number that is not finite is null.
std::string to_json_line(const StepReport& report);

/// RUN/metrics.jsonl, appended step by step.
class MetricsFile {
 public:
  /// Goes on after step `resumed_step`: lines of later steps and an unfinished last line are cut off (0: everything is). Throws Error when
  /// the file cannot be opened.
  MetricsFile(const std::filesystem::path& path, int64_t resumed_step);
  ~MetricsFile();
  MetricsFile(const MetricsFile&) = delete;
  MetricsFile& operator=(const MetricsFile&) = delete;
  /// Writes one line, handed to the operating system before it returns. Throws Error when that fails.
  void append(const StepReport& report);
  /// Step of the last line kept: less than resumed_step when the file lacks lines it should hold.
  int64_t last_step_kept() const { return last_step_kept_; }
  /// Waits until everything is on the disk (before a checkpoint that relies on it).
  void sync();

 private:
  std::filesystem::path path_;
  int descriptor_ = -1;
  int64_t last_step_kept_ = 0;
};

/// Progress for people: on a terminal one line that changes in place, in a log plain lines, at most one per interval.
class ProgressLine {
 public:
  struct Options {
    int64_t total_steps = 0;
    double live_interval_s = 0.1;
    double log_interval_s = 10;
  };
  /// `out` stays open; whether it is a terminal decides the form.
  ProgressLine(std::FILE* out, const Options& options);
  ~ProgressLine();
  void show(const StepReport& report);
  /// A line of its own that stays.
  void note(const std::string& text);
  /// Ends the live line.
  void finish();

 private:
  std::FILE* out_;
  Options options_;
  bool live_ = false, line_open_ = false;
  std::chrono::steady_clock::time_point last_shown_{};
  bool shown_ = false;
  double seconds_per_step_ = 0;
};

/// The width of the terminal `descriptor`; 0 where it is none, or one without a width, on which a line cannot be redrawn (mpirun's, that leads
/// to a log).
int64_t terminal_columns(int descriptor);
/// `text` cut to what stays on one row of the terminal `descriptor`: a longer one could not be taken back.
std::string fit_to_terminal(std::string text, int descriptor);

/// Resident memory of this process in bytes (0 where the system does not tell).
int64_t resident_bytes();
/// "1.2k", "34.5M", "2.1G": three digits that mean something.
std::string short_number(double value);
/// "45s", "3m20s", "2h05m".
std::string short_duration(double seconds);

}  // namespace braid
