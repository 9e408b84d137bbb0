// One training step, and everything that must survive between two of them.
#pragma once
#include <deque>
#include <optional>
#include <string>

#include "core/communicator.h"
#include "core/transfers.h"
#include "io/checkpoint.h"
#include "models/cost.h"
#include "train/batch.h"
#include "train/metrics.h"
#include "train/optimizer.h"
#include "train/schedule.h"
#include "train/score.h"

namespace braid {

struct TrainOptions {
  Schedule schedule;  // schedule.steps is the length of the run
  AdamWOptions adamw;
  double max_grad_norm = 1;  // 0: no clipping
  RecomputeLevel recompute = RecomputeLevel::none;
  int64_t recompute_layers = -1;     // in the first n layers; negative: in all
  DType compute_dtype = DType::f32;  // bf16: matrices are multiplied in bf16, masters stay f32
  double spike_margin = 3;           // a loss this many nats above its running mean is a spike; 0: only NaN and infinity are caught
  int64_t max_skipped_in_row = 10;   // so many skipped steps in a row end the run with an Error
  std::optional<ModelCost> cost;     // of the model; for MFU
  double peak_flops = 0;             // of the device, per second; for MFU
};

/// Throws Error that names the first option out of range.
void check_train_options(const TrainOptions& options);

class Trainer {
 public:
  /// The model's parameters must have values; `model`, `source` and `communicator` (null: one rank) must outlive this.
  Trainer(Context& ctx, const Module& model, ScoreFunction score, BatchSource& source, const TrainOptions& options,
          Communicator* communicator = nullptr);

  /// The training step. A step whose loss or gradient is not finite, or whose loss is a spike, changes no parameter and is counted; throws
  /// Error after options.max_skipped_in_row of them.
  StepReport step();

  /// The same in two halves. A GPU is given a step's work by the first, which waits for nothing; the second waits for the oldest step started.
  /// With one step always in flight the GPU never waits for the host. On the CPU the first half does all the work.
  void start_step();
  StepReport finish_step();
  /// Steps that may be in flight when the next is started: 1 where a GPU decides on its steps itself, else 0.
  int64_t steps_ahead() const { return optimizer_.decides_on_device(ctx_) ? 1 : 0; }

  int64_t steps_started() const { return state_.step + static_cast<int64_t>(pending_.size()); }
  int64_t steps_done() const { return state_.step; }
  int64_t num_skipped() const { return state_.num_skipped; }
  bool finished() const { return steps_started() >= options_.schedule.steps; }
  const TrainOptions& options() const { return options_; }
  Context& context() const { return ctx_; }
  /// Null: one rank.
  Communicator* communicator() const { return communicator_; }
  const AdamW& optimizer() const { return optimizer_; }

  /// All of the training state: parameters, moments, counters, random state, position in the data. `config` is kept with it. No step may be in
  /// flight.
  Checkpoint checkpoint(const std::string& config) const;
  /// Goes on from a checkpoint; from one of values only it starts with them and zeroed moments. Throws Error when it belongs to another model or
  /// other data; then this trainer must not be used further.
  void restore(const CheckpointReader& checkpoint);

 private:
  /// What a step leaves to the next besides tensors.
  struct State {
    int64_t step = 0, tokens = 0, num_skipped = 0, skipped_in_row = 0;
    double mean_loss = 0;  // running mean over about StepGuard::kMemory steps
    int64_t num_in_mean = 0;
    double seconds = 0;
  };
  /// A step whose end nobody has waited for yet.
  struct Pending {
    int64_t num_tokens = 0;
    double flops = 0;  // of all ranks
    double learning_rate = 0;
    std::unique_ptr<Moment> begin, end;  // of its work, where that is done
    StepGuard result;                    // known at once, or
    std::unique_ptr<PendingRead> read;   // on its way from the GPU
  };

  double flops_of(const StepBatch& batch) const;
  Tensor accumulate_gradients(const StepBatch& batch);
  bool acceptable(double loss, double norm) const;
  void decide_on_host(Pending& step, const Tensor& loss);
  void decide_on_device(Pending& step, const Tensor& loss);
  void count_step(const Pending& step, double seconds);

  Context& ctx_;
  const Module& model_;
  ScoreFunction score_;
  BatchSource& source_;
  TrainOptions options_;
  Communicator* communicator_;
  AdamW optimizer_;
  State state_;
  std::deque<Pending> pending_;
  Tensor guard_;  // f64 [StepGuard::kSize] on a GPU that decides on its steps; made from state_ when it is undefined
};

}  // namespace braid
