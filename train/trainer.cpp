#include "train/trainer.h"

#include <algorithm>
#include <chrono>
#include <cmath>

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
  const auto start = std::chrono::steady_clock::now();
  const StepBatch batch = source_.next(ctx_);
  const double loss = accumulate_gradients(batch);
  const double norm = optimizer_.gradient_norm(ctx_);
  const double rate = learning_rate(options_.schedule, state_.step);
  const bool skipped = !acceptable(loss, norm);
  if (!skipped) optimizer_.step(ctx_, rate, clip_scale(norm, options_.max_grad_norm));
  zero_grads(ctx_, model_);
  ctx_.synchronize();
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  count_step(batch, loss, seconds, skipped);

  StepReport report;
  report.step = state_.step;
  report.tokens = state_.tokens;
  report.loss = loss;
  report.learning_rate = rate;
  report.grad_norm = norm;
  report.tokens_per_s = static_cast<double>(batch.num_tokens) / seconds;
  report.mfu = options_.peak_flops > 0 ? options_.flops_per_token * report.tokens_per_s / options_.peak_flops : 0;
  report.memory_bytes = resident_bytes();
  report.time = state_.seconds;
  report.skipped = skipped;
  return report;
}

/// Gradients of Σ (loss over all targets of all micro-batches and ranks) / (number of those targets), and that loss.
double Trainer::accumulate_gradients(const StepBatch& batch) {
  LossOptions options;
  options.denominator = static_cast<double>(std::max<int64_t>(1, batch.num_targets));
  options.recompute = options_.recompute;
  options.recompute_layers = options_.recompute_layers;
  double loss = 0;
  for (const Batch& micro_batch : batch.micro_batches) {
    Tape tape;
    LossOutput output;
    {
      WithTape recording(ctx_, &tape);
      output = score_(ctx_, micro_batch, options);
    }
    tape.backward(ctx_, output.loss);
    loss += item(ctx_, output.loss);
  }
  if (!communicator_ || communicator_->size() == 1) return loss;
  for (const Parameter* parameter : model_.parameters()) communicator_->all_reduce(ctx_, parameter->grad, Reduction::sum);
  const Tensor total = from_vector<double>(ctx_, {loss}, {});
  communicator_->all_reduce(ctx_, total, Reduction::sum);
  return item(ctx_, total);
}

bool Trainer::acceptable(double loss, double norm) const {
  if (!std::isfinite(loss) || !std::isfinite(norm)) return false;
  const bool watching = options_.spike_margin > 0 && state_.num_in_mean >= kFirstSpikeStep;
  return !watching || loss <= state_.mean_loss + options_.spike_margin;
}

void Trainer::count_step(const StepBatch& batch, double loss, double seconds, bool skipped) {
  ++state_.step;
  state_.tokens += batch.num_tokens;
  state_.seconds += seconds;
  if (skipped) {
    ++state_.num_skipped;
    ++state_.skipped_in_row;
    BRAID_CHECK(state_.skipped_in_row < options_.max_skipped_in_row, "train: step ", state_.step, ": the loss (", loss,
                ") or its gradient was not finite, or jumped, for ", state_.skipped_in_row,
                " steps in a row; lower the learning rate or lengthen the warm-up, and resume from an earlier checkpoint");
    return;
  }
  state_.skipped_in_row = 0;
  state_.num_in_mean = std::min(state_.num_in_mean + 1, kMemory);
  state_.mean_loss += (loss - state_.mean_loss) / static_cast<double>(state_.num_in_mean);
}

Checkpoint Trainer::checkpoint(const std::string& config) const {
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
