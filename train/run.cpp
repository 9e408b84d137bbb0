#include "train/run.h"

#include <fcntl.h>
#include <sys/file.h>

#include <cerrno>
#include <exception>

#include "io/file.h"
#include "train/interrupt.h"

namespace braid {
namespace {

/// Directories made for a run. A run that fails before its first step leaves nothing behind.
class MadeDirectories {
 public:
  explicit MadeDirectories(const Path& path) : exceptions_before_(std::uncaught_exceptions()) {
    std::error_code error;
    for (Path made = path; !made.empty() && !std::filesystem::exists(made, error); made = made.parent_path()) made_.push_back(made);
    make_directories(path);
  }
  ~MadeDirectories() {
    std::error_code full;
    if (std::uncaught_exceptions() > exceptions_before_)
      for (const Path& path : made_) std::filesystem::remove(path, full);
  }
  MadeDirectories(const MadeDirectories&) = delete;
  MadeDirectories& operator=(const MadeDirectories&) = delete;

 private:
  int exceptions_before_;
  std::vector<Path> made_;  // innermost first
};

/// Keeps a second process from training in the same directory; the system lets go of it when this one ends, however it does.
FileDescriptor lock_run(const Path& directory) {
  FileDescriptor descriptor(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (descriptor.number() < 0) fail_path("cannot open", directory, errno);
  const bool taken = ::flock(descriptor.number(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
  BRAID_CHECK(!taken, "cannot train in ", directory.string(), ": another process is training there");
  return descriptor;
}

/// Goes on from the newest whole checkpoint, if there is one.
std::optional<CheckpointReader> resume(Trainer& trainer, const RunOptions& options, TrainObserver& observer) {
  std::vector<std::string> notes;
  auto found = newest_whole_checkpoint(options.directory, notes);
  for (const std::string& note : notes) observer.on_note(note);
  if (!found) return found;
  const int64_t wanted = trainer.options().schedule.steps;
  BRAID_CHECK(found->step() <= wanted, "train: --steps must be at least the ", found->step(), " steps that ", options.directory.string(),
              " has done, got ", wanted);
  trainer.restore(*found);
  observer.on_note("resumed from " + found->directory().string() + (found->holds_values_only() ? ": values only, the optimizer starts anew" : ""));
  return found;
}

/// The directory's side of a run: metrics and checkpoints.
class RunFiles {
 public:
  RunFiles(Trainer& trainer, const RunOptions& options, TrainObserver& observer)
      : trainer_(trainer), options_(options), made_(options.directory / "checkpoints") {
    lock_ = lock_run(options.directory);
    remove_unfinished_checkpoints(options.directory);
    if (options.resume) {
      const auto found = resume(trainer, options, observer);
      if (found) last_saved_ = found->step();
    }
    metrics_.emplace(options.directory / "metrics.jsonl", trainer.steps_done());
    if (metrics_->last_step_kept() < trainer.steps_done())
      observer.on_note("metrics.jsonl lacks steps " + std::to_string(metrics_->last_step_kept() + 1) + " to " + std::to_string(trainer.steps_done()));
  }

  ~RunFiles() {
    std::error_code error;
    const Path metrics = options_.directory / "metrics.jsonl";
    if (std::filesystem::file_size(metrics, error) == 0) std::filesystem::remove(metrics, error);
  }

  void append(const StepReport& report) { metrics_->append(report); }

  void save() {
    if (trainer_.steps_done() == last_saved_) return;
    metrics_->sync();
    write_checkpoint(trainer_.context(), options_.directory, trainer_.checkpoint(options_.config));
    last_saved_ = trainer_.steps_done();
    prune_checkpoints(options_.directory, last_saved_, options_.keep);
  }

 private:
  Trainer& trainer_;
  const RunOptions& options_;
  MadeDirectories made_;
  FileDescriptor lock_;
  std::optional<MetricsFile> metrics_;
  int64_t last_saved_ = 0;
};

/// The largest of all ranks' values.
int64_t largest(Trainer& trainer, int64_t value) {
  if (!trainer.communicator() || trainer.communicator()->size() == 1) return value;
  Context host(1);
  const Tensor most = from_vector<int64_t>(host, {value}, {1});
  trainer.communicator()->all_reduce(host, most, Reduction::max);
  return to_vector<int64_t>(host, most)[0];
}

bool due(int64_t step, int64_t every) { return every > 0 && step % every == 0; }

}  // namespace

void check_run_directory(const RunOptions& options) {
  BRAID_CHECK(options.save_every >= 0 && options.keep >= 0 && options.val_every >= 0,
              "train: save-every, keep and val-every must be at least 0, got ", options.save_every, ", ", options.keep, " and ", options.val_every);
  BRAID_CHECK(options.val_every == 0 || options.validate, "train: val-every is set but there is nothing to validate on");
  if (options.directory.empty()) return;
  const bool holds_checkpoint = !list_checkpoints(options.directory).empty();
  BRAID_CHECK(options.resume || !holds_checkpoint, "train: ", options.directory.string(),
              " holds a checkpoint; go on from it with --resume, or choose another directory");
}

RunEnd run_training(Trainer& trainer, const RunOptions& options, TrainObserver& observer) {
  check_run_directory(options);
  std::optional<RunFiles> files;
  const bool is_first = !trainer.communicator() || trainer.communicator()->rank() == 0;
  if (!options.directory.empty() && is_first) files.emplace(trainer, options, observer);
  else if (!options.directory.empty() && options.resume) resume(trainer, options, observer);
  const int64_t newest = largest(trainer, trainer.steps_done());
  BRAID_CHECK(trainer.steps_done() == newest, "train: every rank must see the same checkpoints in ", options.directory.string(), ", got step ",
              trainer.steps_done(), " here and step ", newest, " on another");
  const auto finish_step = [&] {
    StepReport report = trainer.finish_step();
    if (is_first && due(report.step, options.val_every)) report.val_loss = options.validate();
    if (files) files->append(report);
    observer.on_step(report);
    if (report.skipped)
      observer.on_note("step " + std::to_string(report.step) + " skipped: loss " + std::to_string(report.loss) + ", gradient norm " +
                       std::to_string(report.grad_norm));
  };
  while (!trainer.finished() && largest(trainer, interrupted() ? 1 : 0) == 0) {
    trainer.start_step();
    const int64_t step = trainer.steps_started();
    const bool all = due(step, options.val_every) || due(step, options.save_every);
    while (step - trainer.steps_done() > (all ? 0 : trainer.steps_ahead())) finish_step();
    if (files && due(step, options.save_every)) files->save();
  }
  while (trainer.steps_done() < trainer.steps_started()) finish_step();
  if (files && trainer.steps_done() > 0) files->save();
  if (trainer.finished()) return RunEnd::finished;
  observer.on_note("interrupted after step " + std::to_string(trainer.steps_done()));
  return RunEnd::interrupted;
}

}  // namespace braid
