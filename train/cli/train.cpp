// braid train: trains a model on token data sets.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <iostream>

#ifdef BRAID_WITH_MPI
#include "core/communicator_mpi.h"
#endif
#include "core/owner.h"
#include "core/profile.h"
#ifdef BRAID_WITH_CUDA
#include "cuda/runtime/memory.h"
#endif
#include "io/json.h"
#include "io/token_dataset.h"
#include "models/cost.h"
#include "train/cli/commands.h"
#include "train/cli/cpu_speed.h"
#include "train/cli/model_source.h"
#include "train/cli/recall_options.h"
#include "train/cli/table.h"
#include "train/data_loader.h"
#include "train/evaluate.h"
#include "train/interrupt.h"
#include "train/run.h"

namespace braid::cli {
namespace {

struct TrainCommand {
  std::string model, init_from, out, schedule = "cosine", dtype, recompute = "none", val_data, json;
  std::vector<std::string> data;
  int64_t steps = 1000, batch_tokens = 8192, context = 512, warmup = -1, accumulate = 1, micro_tokens = 0, seed = 0;
  int64_t val_every = 0, val_tokens = 1 << 16, save_every = 0, keep = 3, recompute_layers = -1;
  double lr = 1e-3, weight_decay = 0.1, clip = 1, floor_ratio = 0.1, decay_fraction = 0.2, spike_margin = 3, peak_tflops = 0;
  bool resume = false, memory = false, profile = false;
  RecallOptions recall;
  DeviceOptions device;
};

void declare(Options& options, TrainCommand& o) {
  options.text("model", "a preset (see 'braid models'), a model directory or a config.json: what to train; its values are drawn anew", o.model);
  options.require("model");
  options.list("data", "token data sets, each with :WEIGHT if wanted", o.data);
  declare_recall(options, "learn a recall task instead of --data, examples made on the fly, loss at the answers only", o.recall);
  options.text("out", "the run: checkpoints and metrics.jsonl go there", o.out);
  options.require("out");
  options.text("init-from", "take the first values from this model directory, run or checkpoint", o.init_from);
  options.flag("resume", "go on from the newest whole checkpoint in the run, or start anew where there is none", o.resume);
  options.integer("steps", "length of the run", o.steps, 1);
  options.integer("batch-tokens", "tokens of a step, of all ranks together under mpirun", o.batch_tokens, 1);
  options.integer("context", "tokens of a row; no sequence is longer", o.context, 1);
  options.integer("accumulate", "parts in which a step's batch is computed", o.accumulate, 1, 1 << 16);
  options.integer("micro-tokens", "the same, given as tokens of a part; 0: by --accumulate", o.micro_tokens);
  options.number("lr", "highest learning rate", o.lr);
  options.choice("schedule", "of the learning rate", o.schedule, {"cosine", "wsd", "constant"});
  options.integer("warmup", "steps of rising rate; -1: a tenth of the run, at most 1024", o.warmup, -1);
  options.number("lr-floor", "last rate over highest", o.floor_ratio, 0, 1);
  options.number("decay-fraction", "wsd: last part of the run, in which the rate falls", o.decay_fraction, 0, 1);
  options.number("weight-decay", "of AdamW, on matrices and convolutions", o.weight_decay);
  options.number("clip", "largest norm of the gradient; 0: no bound", o.clip);
  options.number("spike-margin", "skip a step whose loss is this far above the mean; 0: only if it is not finite", o.spike_margin);
  options.choice("dtype", "what matrices are multiplied in (default: f32 on the CPU, bf16 on a GPU)", o.dtype, {"bf16", "f32"});
  options.integer("seed", "of first values and order of data", o.seed, 0, std::numeric_limits<int64_t>::max());
  options.text("val-data", "token data set to validate on", o.val_data);
  options.integer("val-every", "steps between validations; 0: one, after the last step", o.val_every);
  options.integer("val-tokens", "tokens of a validation; 0: all", o.val_tokens);
  options.integer("save-every", "steps between checkpoints; 0: only at the end", o.save_every);
  options.integer("keep", "newest checkpoints kept; 0: all", o.keep);
  options.choice("recompute", "what is computed again in backward instead of kept", o.recompute, {"none", "mlp", "block"});
  options.integer("recompute-layers", "in so many of the first layers; -1: in all", o.recompute_layers, -1);
  options.flag("memory",
               "print what is held by kind and kept for backward by operator before training, and on a GPU who held what when most was held",
               o.memory);
  options.flag(
      "profile",
      "print where the time of the fourth step went (of the fifth on a GPU, which starts one ahead), by operator; a GPU then waits for every kernel",
      o.profile);
  options.number("peak-tflops", "operations per second that MFU is measured against; 0: 803 on a GPU (an H100's bf16 product), measured on the CPU",
                 o.peak_tflops);
  options.device(o.device);
  options.reads({"model", "data", "val-data", "init-from", "out"});
  options.json(o.json);
}

struct WeightedPath {
  std::string path;
  double weight = 1;
};

/// "data.h5" or "data.h5:0.3".
WeightedPath parse_weighted(const std::string& text) {
  const size_t colon = text.rfind(':');
  if (colon == std::string::npos || std::filesystem::exists(text)) return {text};
  double weight = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data() + colon + 1, end, weight);
  BRAID_CHECK(error == std::errc{} && stop == end && weight > 0 && std::isfinite(weight),
              "--data must be FILE or FILE:WEIGHT with a positive weight, got ", text);
  return {text.substr(0, colon), weight};
}

/// A data set from whose first `num_tokens` tokens (0: all) something can be learned or told.
std::shared_ptr<const TokenSource> open_for(const std::string& option, const std::string& path, const ModelConfig& config, int64_t num_tokens = 0) {
  require_file(option, path);
  const int64_t vocab = TokenDataset(path).vocab_size();
  BRAID_CHECK(vocab <= config.vocab_size, option, " must have a vocabulary of at most ", config.vocab_size, " like the model, got ", path, " with ",
              vocab);
  auto source = open_token_source(path, config.vocab_size);
  BRAID_CHECK(has_target(*source, num_tokens), option, " must hold two tokens in a row of one document, got ", path, " with ", source->num_tokens(),
              " tokens");
  return source;
}

int64_t num_micro_batches(const TrainCommand& o) {
  if (o.micro_tokens == 0) return o.accumulate;
  BRAID_CHECK(o.accumulate == 1, "--micro-tokens and --accumulate must not be given together, got both");
  BRAID_CHECK(o.batch_tokens % o.micro_tokens == 0, "--micro-tokens must divide --batch-tokens ", o.batch_tokens, ", got ", o.micro_tokens);
  return o.batch_tokens / o.micro_tokens;
}

/// The ranks of mpirun, or this process alone.
std::unique_ptr<Communicator> make_ranks([[maybe_unused]] const TrainCommand& o, [[maybe_unused]] const Context& ctx) {
#ifdef BRAID_WITH_MPI
  if (started_by_mpi()) {
    BRAID_CHECK(ctx.on_cpu(), "--device must be cpu for ranks of mpirun, got ", o.device.device);
    return make_mpi_communicator();
  }
#endif
  return make_single_process_communicator();
}

/// This rank's share of a step's batch: --batch-tokens are those of all ranks together.
BatchShare batch_share(const TrainCommand& o, const Communicator& ranks) {
  return {.rank = ranks.rank(), .num_ranks = ranks.size(), .num_micro_batches = num_micro_batches(o)};
}

LoaderOptions loader_options(const TrainCommand& o, const BatchShare& share) {
  const int64_t parts = share.num_micro_batches * share.num_ranks;
  BRAID_CHECK(o.batch_tokens % (o.context * parts) == 0, "--batch-tokens must be a multiple of context x micro-batches",
              share.num_ranks > 1 ? " x ranks" : "", " = ", o.context, " x ", parts, ", got ", o.batch_tokens);
  return {.batch_tokens = o.batch_tokens, .context = o.context, .seed = static_cast<uint64_t>(o.seed), .share = share};
}

RecomputeLevel recompute_level(const std::string& text) {
  return text == "block" ? RecomputeLevel::block : text == "mlp" ? RecomputeLevel::mlp : RecomputeLevel::none;
}

TrainOptions train_options(const TrainCommand& o, const ModelConfig& config, Context& ctx) {
  TrainOptions options;
  const int64_t warmup = o.warmup >= 0 ? o.warmup : std::min<int64_t>(1024, o.steps / 10);
  options.schedule = {.kind = parse_schedule(o.schedule),
                      .peak = o.lr,
                      .steps = o.steps,
                      .warmup = warmup,
                      .floor_ratio = o.floor_ratio,
                      .decay_fraction = o.decay_fraction};
  options.adamw.weight_decay = o.weight_decay;
  options.max_grad_norm = o.clip;
  options.recompute = recompute_level(o.recompute);
  options.recompute_layers = o.recompute_layers;
  options.compute_dtype = compute_dtype(o.dtype, ctx);
  options.spike_margin = o.spike_margin;
  options.cost = model_cost(config, o.context);
  constexpr double kMeasuredPeak = 803e12;
  options.peak_flops = o.peak_tflops > 0 ? 1e12 * o.peak_tflops : ctx.on_cpu() ? gemm_flops_per_second(ctx) : kMeasuredPeak;
  check_train_options(options);
  return options;
}

/// What is held from step to step, by kind; then one loss of the first micro-batch, recorded and thrown away: what the tape keeps is what training
/// will keep, by operator.
void print_memory(Context& ctx, const HybridLm& model, const Trainer& trainer, const std::vector<WeightedSource>& sources, const TrainCommand& o,
                  const BatchShare& share) {
  std::vector<std::pair<std::string, int64_t>> kinds;
  for (const std::string_view kind : {kOwnerParameters, kOwnerGradients, kOwnerCopies, kOwnerMoments}) kinds.emplace_back(kind, 0);
  for (const Parameter* parameter : model.parameters()) {
    kinds[0].second += parameter->value.nbytes();
    kinds[1].second += parameter->grad.nbytes();
    if (parameter->compute) kinds[2].second += parameter->compute.nbytes();
  }
  for (const OptimizerSlot& slot : trainer.optimizer().slots()) kinds[3].second += slot.m.nbytes() + slot.v.nbytes();
  const auto print = [](Table& table, int64_t total, auto... blank) {
    table.add({"all of these", blank..., bytes(static_cast<double>(total))});
    table.print(std::cout);
  };
  Table held({"held all the time by", "bytes"});
  int64_t total = 0;
  for (const auto& [kind, count] : kinds) {
    if (count > 0) held.add({kind, bytes(static_cast<double>(count))});
    total += count;
  }
  print(held, total);
  DataLoader loader(sources, loader_options(o, share));
  const StepBatch batch = loader.next(ctx);
  Tape tape;
  WithTape recording(ctx, &tape);
  score_with(model)(ctx, batch.micro_batches.at(0),
                    {.recompute = trainer.options().recompute, .recompute_layers = trainer.options().recompute_layers});
  Table kept({"kept for backward by", "calls", "bytes"});
  total = 0;
  for (const SavedBytes& saved : tape.saved_bytes()) {
    kept.add({saved.op, std::to_string(saved.count), bytes(static_cast<double>(saved.bytes))});
    total += saved.bytes;
  }
  print(kept, total, "");
  std::cout.flush();
}

/// On a GPU: who held what when most was held.
void print_held_at_peak([[maybe_unused]] Context& ctx, ProgressLine& line) {
#ifdef BRAID_WITH_CUDA
  if (ctx.on_cpu()) return;
  line.finish();
  Table table({"held at the peak by", "bytes"});
  double total = 0;
  for (const HeldBytes& held : cuda::memory_held_at_peak(ctx.device().index)) {
    table.add({held.owner, bytes(static_cast<double>(held.bytes))});
    total += static_cast<double>(held.bytes);
  }
  table.add({"all of these", bytes(total)});
  table.print(std::cout);
#else
  static_cast<void>(line);
#endif
}

std::vector<WeightedSource> open_sources(const TrainCommand& o, const ModelConfig& config) {
  std::vector<WeightedSource> sources;
  for (const std::string& text : o.data) {
    const WeightedPath weighted = parse_weighted(text);
    sources.push_back({open_for("--data", weighted.path, config), weighted.weight});
  }
  return sources;
}

/// Rows of the data sets, or as many examples of the task as --batch-tokens holds.
std::unique_ptr<BatchSource> make_source(const TrainCommand& o, const std::vector<WeightedSource>& sources, const RecallTask* task,
                                         const BatchShare& share) {
  if (!task) return std::make_unique<DataLoader>(sources, loader_options(o, share));
  const int64_t parts = share.num_micro_batches * share.num_ranks, examples = o.batch_tokens / task->sequence_length() / parts * parts;
  BRAID_CHECK(examples > 0, "--batch-tokens must hold an example of ", task->sequence_length(), " tokens for each of ", parts, " micro-batches, got ",
              o.batch_tokens);
  return std::make_unique<RecallSource>(*task, examples, share);
}

RunOptions run_options(const TrainCommand& o, const ModelConfig& config) {
  RunOptions run;
  run.directory = o.out;
  run.config = to_json(config).dump();
  run.resume = o.resume;
  run.save_every = o.save_every;
  run.keep = o.keep;
  run.val_every = o.val_every > 0 || o.val_data.empty() ? o.val_every : o.steps;
  return run;
}

/// The progress line, and what --memory and --profile ask for.
class TrainReporter final : public TrainObserver {
 public:
  TrainReporter(Context& ctx, const TrainCommand& o) : ctx_(ctx), o_(o), progress_(stdout, o.steps) {}
  void on_step(const StepReport& report) override {
    progress_.on_step(report);
    last_step_ = to_json_line(report);
    // Set between two steps, taken away before the next: exactly one is measured.
    ctx_.profile = o_.profile && ++num_steps_ == kBeforeProfile ? &profile_ : nullptr;
    if (o_.memory && report.step == 1) print_held_at_peak(ctx_, progress_.line());
  }
  void on_note(const std::string& text) override { progress_.on_note(text); }
  /// Its line of metrics.jsonl; null where no step was made.
  Json last_step() const { return last_step_.empty() ? Json() : parse_json("metrics", last_step_); }
  void print_profile() {
    progress_.line().finish();
    if (!o_.profile) return;
    if (profile_.ops.empty()) {
      std::cout << "--profile: no step was measured, there were only " << num_steps_ << '\n';
      return;
    }
    std::vector<std::pair<double, std::string>> order;
    for (const auto& [op, entry] : profile_.ops) order.emplace_back(entry.forward_ms + entry.backward_ms, op);
    std::sort(order.rbegin(), order.rend());
    Table table({"operator", "calls", "forward ms", "backward ms"});
    for (const auto& [total, op] : order) {
      const Profile::Entry& entry = profile_.ops.at(op);
      table.add({op, std::to_string(entry.num_calls), number(entry.forward_ms), number(entry.backward_ms)});
    }
    table.print(std::cout);
  }

 private:
  static constexpr int64_t kBeforeProfile = 3;
  int64_t num_steps_ = 0;  // of this command, with --profile
  Context& ctx_;
  const TrainCommand& o_;
  ProgressObserver progress_;
  std::string last_step_;
  Profile profile_;
};

void check(const TrainCommand& o) {
  BRAID_CHECK(o.data.empty() != o.recall.task.empty(), "--data must be given, or --recall, got ", o.data.empty() ? "nothing" : "both",
              "; see 'braid train --help'");
  BRAID_CHECK(o.recall.task.empty() || !o.memory, "--memory must be given with --data, got --recall");
  BRAID_CHECK(o.val_every == 0 || !o.val_data.empty(), "--val-data must be given with --val-every, got nothing");
  BRAID_CHECK(o.warmup <= o.steps, "--warmup must be at most --steps = ", o.steps, ", got ", o.warmup);
  require_writable_directory("--out", o.out);
  require_place_for_run("--out", o.out);
  require_writable_file("--json", o.json);
  if (!o.init_from.empty()) require_path("--init-from", o.init_from);
}

}  // namespace

int run_train(const Arguments& arguments) {
  TrainCommand o;
  Options options("train", "train a model; SIGINT or SIGTERM ends it after a step with a checkpoint",
                  "braid train --model tiny-gdn-3-1 --data train.h5 --out RUN --steps 500 --val-data val.h5 --val-every 100\n"
                  "  braid train --model tiny-gdn-3-1 --recall mqar --out RUN --steps 500\n"
                  "  mpirun -n 2 braid train --model tiny-gdn-3-1 --data train.h5 --out RUN --threads 1");
  declare(options, o);
  if (!options.parse(arguments)) return kDone;
  check(o);
  if (o.profile) ::setenv("CUDA_LAUNCH_BLOCKING", "1", 1);  // operators are timed on the host
#ifdef BRAID_WITH_MPI
  if (o.device.device.empty() && started_by_mpi()) o.device.device = "cpu";  // ranks exchange tensors of the CPU
#endif
  Context ctx = make_context(o.device, DType::f32);
  const std::unique_ptr<Communicator> ranks = make_ranks(o, ctx);
  const BatchShare share = batch_share(o, *ranks);
  const bool is_first = ranks->rank() == 0;
  const ModelConfig config = named_config("--model", o.model);
  const std::vector<WeightedSource> sources = open_sources(o, config);
  const auto val_source = o.val_data.empty() ? nullptr : open_for("--val-data", o.val_data, config, o.val_tokens);
  RunOptions run = run_options(o, config);
  const auto task = o.recall.task.empty() ? nullptr : make_task(o.recall, o.seed, config.vocab_size);
  const std::unique_ptr<BatchSource> source = make_source(o, sources, task.get(), share);
  TrainOptions train = train_options(o, config, ctx);
  train.peak_flops *= ranks->size();
  HybridLm model(config);
  const ScoreFunction score = score_with(model);
  if (val_source) run.validate = [&] { return evaluate_text(ctx, score, *val_source, o.context, o.batch_tokens, o.val_tokens).loss(); };
  check_run_directory(run);
  InterruptGuard guard;
  initialize(ctx, model, DType::f32, config.initializer_range, static_cast<uint64_t>(o.seed));
  if (!o.init_from.empty()) load_named_values(ctx, "--init-from", o.init_from, model, DType::f32);
  Trainer trainer(ctx, model, score, *source, train, ranks.get());
  if (o.memory && is_first) print_memory(ctx, model, trainer, sources, o, share);
  TrainObserver silent;
  if (!is_first) {  // the first speaks for all
    run_training(trainer, run, silent);
    return kDone;
  }
  TrainReporter observer(ctx, o);
  const RunEnd end = run_training(trainer, run, observer);
  observer.print_profile();
  const char* how = end == RunEnd::finished ? "finished" : "interrupted";
  std::cout << how << " after step " << trainer.steps_done() << " of " << o.steps << "; " << o.out << " holds the checkpoint";
  if (trainer.num_skipped() > 0) std::cout << "; " << trainer.num_skipped() << " steps were skipped";
  std::cout << '\n';
  if (!o.json.empty())
    write_json(
        o.json,
        {{"run", o.out}, {"end", how}, {"steps", trainer.steps_done()}, {"skipped", trainer.num_skipped()}, {"last_step", observer.last_step()}});
  return kDone;
}

}  // namespace braid::cli
