#include "train/trainer.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "io/json.h"

namespace braid {

void check_train_options(const TrainOptions& options) {
  check_schedule(options.schedule);
  BRAID_CHECK(options.max_grad_norm >= 0, "train: max_grad_norm must be at least 0, got ", options.max_grad_norm);
  BRAID_CHECK(options.spike_margin >= 0, "train: spike_margin must be at least 0, got ", options.spike_margin);
  BRAID_CHECK(options.max_skipped_in_row >= 1, "train: max_skipped_in_row must be at least 1, got ", options.max_skipped_in_row);
  BRAID_CHECK(options.compute_dtype == DType::f64 || options.compute_dtype == DType::f32 || options.compute_dtype == DType::bf16,
              "train: the compute dtype must be f64, f32 or bf16, got ", options.compute_dtype);
}

Trainer::Trainer(Context& ctx, const Module& model, ScoreFunction score, BatchSource& source, const TrainOptions& options, Communicator* communicator)
    : ctx_(ctx),
      model_(model),
      score_(std::move(score)),
      source_(source),
      options_((check_train_options(options), options)),
      communicator_(communicator),
      optimizer_(ctx, model.parameters(), options.adamw) {
  set_compute_dtype(ctx, model, options.compute_dtype);
  zero_grads(ctx, model);
}

StepReport Trainer::step() {
  start_step();
  while (pending_.size() > 1) finish_step();
  return finish_step();
}

void Trainer::start_step() {
  DeviceTransfers& transfers = transfers_of(ctx_.device());
  Pending step;
  step.begin = transfers.mark(ctx_.stream());
  step.learning_rate = learning_rate(options_.schedule, steps_started());
  const StepBatch batch = source_.next(ctx_);
  step.num_tokens = batch.num_tokens;
  step.flops = flops_of(batch);
  const Tensor loss = accumulate_gradients(batch);
  if (steps_ahead() > 0) decide_on_device(step, loss);
  else decide_on_host(step, loss);
  if (steps_ahead() == 0) {
    zero_grads(ctx_, model_);
    ctx_.synchronize();
  }
  step.end = transfers.mark(ctx_.stream());
  if (steps_ahead() > 0) step.read = transfers.read(guard_.raw(), guard_.nbytes(), ctx_.stream());
  pending_.push_back(std::move(step));
}

/// Counted on this rank's sequences; the other ranks' are taken to cost as much per token.
double Trainer::flops_of(const StepBatch& batch) const {
  if (!options_.cost) return 0;
  double flops = 0, tokens = 0;
  for (const Batch& micro_batch : batch.micro_batches) {
    flops += options_.cost->flops(micro_batch.sequences);
    tokens += static_cast<double>(micro_batch.sequences.num_tokens());
  }
  return tokens > 0 ? flops * static_cast<double>(batch.num_tokens) / tokens : 0;
}

void Trainer::decide_on_host(Pending& step, const Tensor& loss) {
  StepGuard& result = step.result;
  result.loss = item(ctx_, loss);
  result.norm = optimizer_.gradient_norm(ctx_);
  const bool good = acceptable(result.loss, result.norm);
  result.skipped = good ? 0 : 1;
  if (good) optimizer_.step(ctx_, step.learning_rate, clip_scale(result.norm, options_.max_grad_norm));
  const int64_t in_mean = state_.num_in_mean + (good && state_.num_in_mean < StepGuard::kMemory ? 1 : 0);
  result.num_in_mean = static_cast<double>(in_mean);
  result.mean_loss = state_.mean_loss + (good ? (result.loss - state_.mean_loss) / result.num_in_mean : 0);
  result.num_updates = static_cast<double>(optimizer_.num_updates());
}

void Trainer::decide_on_device(Pending& step, const Tensor& loss) {
  if (!guard_) {
    const std::vector<double> values = {
        state_.mean_loss, static_cast<double>(state_.num_in_mean), static_cast<double>(optimizer_.num_updates()), 0, 0, 0};
    guard_ = from_vector(ctx_, values, {StepGuard::kSize});
  }
  optimizer_.guarded_step(ctx_, step.learning_rate, {options_.max_grad_norm, options_.spike_margin}, loss, guard_);
}

StepReport Trainer::finish_step() {
  BRAID_CHECK(!pending_.empty(), "train: there is no step to finish");
  Pending step = std::move(pending_.front());
  pending_.pop_front();
  if (step.read) std::memcpy(&step.result, step.read->wait(), sizeof(StepGuard));
  const double seconds = step.end->ms_since(*step.begin) / 1e3;
  count_step(step, seconds);

  StepReport report;
  report.step = state_.step;
  report.tokens = state_.tokens;
  report.loss = step.result.loss;
  report.learning_rate = step.learning_rate;
  report.grad_norm = step.result.norm;
  report.tokens_per_s = static_cast<double>(step.num_tokens) / seconds;
  report.mfu = options_.peak_flops > 0 ? step.flops / (seconds * options_.peak_flops) : 0;
  report.memory_bytes = ctx_.on_cpu() ? resident_bytes() : transfers_of(ctx_.device()).peak_bytes(ctx_.device());
  report.time = state_.seconds;
  report.skipped = step.result.skipped != 0;
  return report;
}

/// Gradients of Σ (loss over all targets of all micro-batches and ranks) / (number of those targets), and that loss, f64 [].
Tensor Trainer::accumulate_gradients(const StepBatch& batch) {
  LossOptions options;
  options.denominator = static_cast<double>(std::max<int64_t>(1, batch.num_targets));
  options.recompute = options_.recompute;
  options.recompute_layers = options_.recompute_layers;
  Tensor total = Tensor::zeros(ctx_, {}, DType::f64);
  for (const Batch& micro_batch : batch.micro_batches) {
    Tape tape;
    LossOutput output;
    {
      WithTape recording(ctx_, &tape);
      output = score_(ctx_, micro_batch, options);
    }
    tape.backward(ctx_, output.loss);
    convert_into(ctx_, total, output.loss, true);
  }
  if (!communicator_ || communicator_->size() == 1) return total;
  for (const Parameter* parameter : model_.parameters()) communicator_->all_reduce(ctx_, parameter->grad, Reduction::sum);
  communicator_->all_reduce(ctx_, total, Reduction::sum);
  return total;
}

bool Trainer::acceptable(double loss, double norm) const {
  if (!std::isfinite(loss) || !std::isfinite(norm)) return false;
  const bool watching = options_.spike_margin > 0 && state_.num_in_mean >= StepGuard::kFirstSpikeStep;
  return !watching || loss <= state_.mean_loss + options_.spike_margin;
}

void Trainer::count_step(const Pending& step, double seconds) {
  const StepGuard& result = step.result;
  ++state_.step;
  state_.tokens += step.num_tokens;
  state_.seconds += seconds;
  state_.mean_loss = result.mean_loss;
  state_.num_in_mean = static_cast<int64_t>(result.num_in_mean);
  optimizer_.set_num_updates(static_cast<int64_t>(result.num_updates));
  if (result.skipped == 0) {
    state_.skipped_in_row = 0;
    return;
  }
  ++state_.num_skipped;
  ++state_.skipped_in_row;
  BRAID_CHECK(state_.skipped_in_row < options_.max_skipped_in_row, "train: step ", state_.step, ": the loss (", result.loss,
              ") or its gradient was not finite, or jumped, for ", state_.skipped_in_row,
              " steps in a row; lower the learning rate or lengthen the warm-up, and resume from an earlier checkpoint");
}

Checkpoint Trainer::checkpoint(const std::string& config) const {
  BRAID_CHECK(pending_.empty(), "train: a checkpoint can be made when no step is in flight, got ", pending_.size());
  const DataPosition position = source_.position();
  const Random::State random = ctx_.random.state();
  const Json state = {{"tokens", state_.tokens},
                      {"num_skipped", state_.num_skipped},
                      {"skipped_in_row", state_.skipped_in_row},
                      {"mean_loss", state_.mean_loss},
                      {"num_in_mean", state_.num_in_mean},
                      {"seconds", state_.seconds},
                      {"num_updates", optimizer_.num_updates()},
                      {"random_seed", static_cast<int64_t>(random.seed)},
                      {"random_position", static_cast<int64_t>(random.position)},
                      {"data_drawn", position.drawn},
                      {"data_fingerprint", static_cast<int64_t>(position.fingerprint)}};
  Checkpoint checkpoint{.step = state_.step, .config = config, .state = state.dump(), .parameters = {}, .first_moments = {}, .second_moments = {}};
  for (const OptimizerSlot& slot : optimizer_.slots()) {
    checkpoint.parameters.push_back({slot.parameter->name, slot.parameter->value});
    checkpoint.first_moments.push_back({slot.parameter->name, slot.m});
    checkpoint.second_moments.push_back({slot.parameter->name, slot.v});
  }
  return checkpoint;
}

void Trainer::restore(const CheckpointReader& checkpoint) {
  using Group = CheckpointReader::Group;
  pending_.clear();
  guard_ = {};
  const std::string name = checkpoint.directory().string();
  const size_t num_saved = checkpoint.names(Group::parameters).size();
  BRAID_CHECK(num_saved == optimizer_.slots().size(), name, ": it holds ", num_saved, " parameters, the model has ", optimizer_.slots().size());
  if (checkpoint.holds_values_only()) {
    for (const Parameter* parameter : model_.parameters()) checkpoint.read_into(ctx_, Group::parameters, parameter->name, parameter->value);
    set_compute_dtype(ctx_, model_, options_.compute_dtype);
    return;
  }
  const Json json = parse_json(name, checkpoint.state());
  const auto integer = [&](const char* key) { return required<int64_t>(name, json, key); };
  source_.restore({required<std::vector<int64_t>>(name, json, "data_drawn"), static_cast<uint64_t>(integer("data_fingerprint"))});
  for (const OptimizerSlot& slot : optimizer_.slots()) {
    checkpoint.read_into(ctx_, Group::parameters, slot.parameter->name, slot.parameter->value);
    checkpoint.read_into(ctx_, Group::first_moments, slot.parameter->name, slot.m);
    checkpoint.read_into(ctx_, Group::second_moments, slot.parameter->name, slot.v);
  }
  set_compute_dtype(ctx_, model_, options_.compute_dtype);
  optimizer_.set_num_updates(integer("num_updates"));
  ctx_.random.set_state({static_cast<uint64_t>(integer("random_seed")), static_cast<uint64_t>(integer("random_position"))});
  state_ = {.step = checkpoint.step(),
            .tokens = integer("tokens"),
            .num_skipped = integer("num_skipped"),
            .skipped_in_row = integer("skipped_in_row"),
            .mean_loss = required<double>(name, json, "mean_loss"),
            .num_in_mean = integer("num_in_mean"),
            .seconds = required<double>(name, json, "seconds")};
}

}  // namespace braid
