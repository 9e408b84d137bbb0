#include "train/study/study.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <mutex>
#include <optional>
#include <system_error>
#include <thread>

#include "train/evaluate.h"
#include "train/interrupt.h"
#include "train/trainer.h"

namespace braid {
namespace {

constexpr int64_t kCurvePoints = 40;

struct GridPoint {
  Family family;
  std::string ratio;
  int64_t seed;
};

std::vector<GridPoint> grid_of(const StudyOptions& options) {
  std::vector<GridPoint> grid;
  for (int64_t seed : options.seeds) {
    for (Family family : options.families)
      for (const std::string& ratio : options.ratios) grid.push_back({family, ratio, seed});
    if (options.transformer) grid.push_back({Family::transformer, "full", seed});
  }
  return grid;
}

/// Trains to the end of the schedule; gathers the loss curve. False when interrupted.
bool train(Trainer& trainer, std::vector<LossPoint>& curve, const std::function<void(const StepReport&)>& on_step) {
  const int64_t steps = trainer.options().schedule.steps, per_point = std::max<int64_t>(1, steps / kCurvePoints);
  double sum = 0;
  int64_t count = 0;
  while (!trainer.finished()) {
    if (interrupted()) return false;
    const StepReport report = trainer.step();
    on_step(report);
    if (std::isfinite(report.loss)) {
      sum += report.loss;
      ++count;
    }
    if (report.step % per_point != 0 || count == 0) continue;
    curve.push_back({report.tokens, sum / static_cast<double>(count)});
    sum = 0;
    count = 0;
  }
  return true;
}

TrainOptions train_options(int64_t steps, double learning_rate) {
  TrainOptions options;
  options.schedule = {
      .kind = ScheduleKind::cosine, .peak = learning_rate, .steps = steps, .warmup = std::min<int64_t>(steps / 10, 50), .floor_ratio = 0.1};
  options.adamw.weight_decay = 0.1;
  options.spike_margin = 0;
  return options;
}

/// One point of the grid: trains on both tasks and scores.
class PointRun {
 public:
  using Say = std::function<void(const std::string&)>;
  PointRun(const StudyOptions& options, const StudyText& text, const RecallTask& task, const GridPoint& point, Say say, const StudyDevice& device)
      : options_(options),
        text_(text),
        task_(task),
        point_(point),
        say_(std::move(say)),
        make_context_(device ? device : [] { return Context(1); }),
        config_(study_model(options, point.family, point.ratio)) {}

  std::optional<StudyRun> run() {
    StudyRun result;
    result.family = std::string(to_string(point_.family));
    result.ratio = point_.ratio;
    result.seed = point_.seed;
    result.num_layers = config_.num_hidden_layers;
    result.full_attention_layers = config_.num_attention_layers();
    result.cost = model_cost(config_, options_.text_context);
    const auto begin = std::chrono::steady_clock::now();
    if (!learn_recall(result) || !learn_text(result)) return std::nullopt;
    result.train_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() - scoring_seconds_;
    return result;
  }

 private:
  bool learn_recall(StudyRun& result) {
    Context ctx = make_context_();
    HybridLm model(config_);
    initialize(ctx, model, DType::f32, config_.initializer_range, static_cast<uint64_t>(point_.seed));
    RecallSource source(task_, options_.recall_examples);
    Trainer trainer(ctx, model, score_with(model), source, train_options(options_.recall_steps, options_.recall_learning_rate));
    if (!train(trainer, result.recall_curve, [&](const StepReport& report) { say(report, "recall", options_.recall_steps, result); })) return false;
    const auto begin = std::chrono::steady_clock::now();
    const RecallScore score = evaluate_recall(ctx, score_with(model), task_, options_.recall_test_examples);
    scoring_seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    result.recall_accuracy = score.accuracy();
    result.recall_loss = score.loss();
    return true;
  }

  bool learn_text(StudyRun& result) {
    Context ctx = make_context_();
    HybridLm model(config_);
    initialize(ctx, model, DType::f32, config_.initializer_range, static_cast<uint64_t>(point_.seed));
    DataLoader loader(
        {{text_.train, 1}},
        {.batch_tokens = options_.text_batch_tokens, .context = options_.text_context, .seed = static_cast<uint64_t>(point_.seed), .share = {}});
    Trainer trainer(ctx, model, score_with(model), loader, train_options(options_.text_steps, options_.text_learning_rate));
    const int64_t recall_tokens = result.tokens;
    if (!train(trainer, result.text_curve, [&](const StepReport& report) { say(report, "text", options_.text_steps, result); })) return false;
    result.tokens += recall_tokens;
    const auto begin = std::chrono::steady_clock::now();
    result.bits_per_byte =
        evaluate_text(ctx, score_with(model), *text_.validation, options_.text_context, options_.text_batch_tokens, options_.text_val_tokens)
            .bits_per_byte();
    scoring_seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    return true;
  }

  void say(const StepReport& report, std::string_view task, int64_t steps, StudyRun& result) {
    result.tokens = report.tokens;
    if (report.step % 25 != 0 && report.step != steps) return;
    std::ostringstream line;
    line.imbue(std::locale::classic());
    line.precision(3);
    line << to_string(point_.family) << ' ' << point_.ratio << " seed " << point_.seed << ": " << task << " step " << report.step << " of " << steps
         << ", loss " << report.loss;
    say_(line.str());
  }

  const StudyOptions& options_;
  const StudyText& text_;
  const RecallTask& task_;
  const GridPoint& point_;
  Say say_;
  StudyDevice make_context_;
  ModelConfig config_;
  double scoring_seconds_ = 0;
};

}  // namespace

StudyResult run_study(const StudyOptions& options, const StudyText& text, const StudyObserver& observer, const StudyDevice& device) {
  check_study(options);
  const std::vector<GridPoint> grid = grid_of(options);
  const std::unique_ptr<RecallTask> task = make_associative_recall(options.recall, 1);
  std::vector<std::optional<StudyRun>> runs(grid.size());
  std::mutex mutex;
  std::atomic<size_t> next{0};
  std::exception_ptr error;
  StudyResult result{options, task->chance(), {}};

  const auto gather = [&] {
    result.runs.clear();
    for (const auto& run : runs)
      if (run) result.runs.push_back(*run);
  };
  const auto say = [&](const std::string& line) {
    std::lock_guard lock(mutex);
    if (observer.on_progress) observer.on_progress(line);
  };
  const auto work = [&] {
    try {
      for (size_t i = next.fetch_add(1); i < grid.size() && !interrupted(); i = next.fetch_add(1)) {
        std::optional<StudyRun> run = PointRun(options, text, *task, grid[i], say, device).run();
        std::lock_guard lock(mutex);
        runs[i] = std::move(run);
        gather();
        if (runs[i] && observer.on_run) observer.on_run(result);
      }
    } catch (...) {
      std::lock_guard lock(mutex);
      if (!error) error = std::current_exception();
      next.store(grid.size());
    }
  };
  {
    std::vector<std::jthread> threads;  // joined when they go, however that comes
    const auto jobs = std::min<int64_t>(options.jobs, static_cast<int64_t>(grid.size()));
    try {
      for (int64_t i = 1; i < jobs; ++i) threads.emplace_back(work);
    } catch (const std::system_error&) {  // no more threads here: those there are, and this one, do it all
    }
    work();
  }
  if (error) std::rethrow_exception(error);
  gather();
  return result;
}

}  // namespace braid
