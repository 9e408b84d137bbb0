// A training run in a directory: resumable, interruptible, observed.
#pragma once
#include <filesystem>
#include <functional>

#include "train/trainer.h"

namespace braid {

/// Told what happens; every member has a default that does nothing.
class TrainObserver {
 public:
  virtual ~TrainObserver() = default;
  virtual void on_step(const StepReport&) {}
  /// Something a person should know: a damaged checkpoint passed over, a skipped step, an interrupt.
  virtual void on_note(const std::string&) {}
};

struct RunOptions {
  std::filesystem::path directory;   // RUN: checkpoints/ and metrics.jsonl go there; empty: nothing is written
  std::string config;                // the model's config.json, kept in every checkpoint
  bool resume = false;               // go on from the newest whole checkpoint, or start anew where there is none
  int64_t save_every = 0;            // 0: only at the end and on an interrupt
  int64_t keep = 3;                  // newest checkpoints kept; 0: all
  int64_t val_every = 0;             // 0: never
  std::function<double()> validate;  // nats per target
};

enum class RunEnd : uint8_t { finished, interrupted };

/// Refuses a RUN that holds a checkpoint unless `resume`, and options that contradict each other. Makes nothing. Call before costly
/// preparations; run_training does it itself.
void check_run_directory(const RunOptions& options);

/// Trains to the end of the schedule or until interrupted() (interrupt.h), writes metrics and checkpoints. Of several ranks the first writes
/// and validates; an interrupt of any ends all after the same step. An Error before the first step leaves the directory as it was.
RunEnd run_training(Trainer& trainer, const RunOptions& options, TrainObserver& observer);

/// Reports to a ProgressLine.
class ProgressObserver final : public TrainObserver {
 public:
  ProgressObserver(std::FILE* out, int64_t total_steps) : line_(out, {.total_steps = total_steps}) {}
  void on_step(const StepReport& report) override { line_.show(report); }
  void on_note(const std::string& text) override { line_.note(text); }
  ProgressLine& line() { return line_; }

 private:
  ProgressLine line_;
};

}  // namespace braid
