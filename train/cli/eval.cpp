// braid eval: perplexity on a data set, accuracy on recall tasks.
#include <iostream>

#include "io/json.h"
#include "io/token_dataset.h"
#include "train/cli/commands.h"
#include "train/cli/live_line.h"
#include "train/cli/model_source.h"
#include "train/cli/recall_options.h"
#include "train/cli/table.h"
#include "train/evaluate.h"
#include "train/metrics.h"

namespace braid::cli {
namespace {

struct EvalOptions {
  std::string model, task = "ppl", dtype = "f32", json;
  std::vector<std::string> data;
  int64_t context = 512, batch_tokens = 4096, max_tokens = 0, examples = 512, batch_examples = 64, seed = 0;
  RecallOptions recall{.task = "mqar", .mqar = {}};
  DeviceOptions device;
};

void declare(Options& options, EvalOptions& o) {
  options.text("model", "model directory, run or checkpoint", o.model);
  options.require("model");
  options.text("task", "ppl (perplexity) or recall", o.task);
  options.list("data", "ppl: token data sets", o.data);
  options.integer("context", "ppl: tokens of a window; windows know nothing of each other", o.context, 2);
  options.integer("batch-tokens", "ppl: tokens taken at once", o.batch_tokens, 2);
  options.integer("max-tokens", "ppl: only so many tokens of each data set; 0: all", o.max_tokens);
  declare_recall(options, "recall: which task", o.recall);
  options.integer("examples", "recall: test examples", o.examples, 1);
  options.integer("batch-examples", "recall: examples taken at once", o.batch_examples, 1);
  options.integer("seed", "recall: of the examples; give the one trained with", o.seed, 0, std::numeric_limits<int64_t>::max());
  options.choice("dtype", "what is computed in", o.dtype, {"f64", "f32", "bf16"});
  options.device(o.device);
  options.reads({"model", "data"});
  options.json(o.json);
}

void check(const EvalOptions& o, const Options& options) {
  BRAID_CHECK(o.task == "ppl" || o.task == "recall", "--task must be ppl or recall (RULER and zero-shot tasks are not part of this version), got ",
              o.task);
  require_path("--model", o.model);
  BRAID_CHECK(o.task != "ppl" || !o.data.empty(), "--data must name a token data set for --task ppl, got nothing");
  BRAID_CHECK(o.task == "ppl" || o.data.empty(), "--data must be given with --task ppl, got --task ", o.task);
  BRAID_CHECK(o.task == "recall" || !options.given("recall"), "--recall must be given with --task recall, got --task ", o.task);
  for (const std::string& path : o.data) require_file("--data", path);
  require_writable_file("--json", o.json);
}

/// The model's score, which tells how many of `total` tokens it has scored.
ScoreFunction with_progress(const HybridLm& model, int64_t total, LiveLine& line) {
  return [score = score_with(model), total, &line, done = int64_t{0}](Context& ctx, const Batch& batch, const LossOptions& options) mutable {
    LossOutput output = score(ctx, batch, options);
    done += batch.sequences.num_tokens();
    if (line.is_due()) line.show(short_number(static_cast<double>(done)) + " of " + short_number(static_cast<double>(total)) + " tokens scored");
    return output;
  };
}

Json perplexity(Context& ctx, const HybridLm& model, const EvalOptions& o) {
  Table table({"data", "tokens", "targets", "loss", "perplexity", "bits/token"});
  Json list = Json::array();
  for (const std::string& path : o.data) {
    const int64_t vocab = TokenDataset(path).vocab_size();
    BRAID_CHECK(vocab <= model.config().vocab_size, "--data must have at most ", model.config().vocab_size,
                " tokens in its vocabulary, the model's, got ", path, " with ", vocab);
    const auto data = open_token_source(path, model.config().vocab_size);
    const int64_t total = o.max_tokens > 0 ? std::min(o.max_tokens, data->num_tokens()) : data->num_tokens();
    LiveLine line;
    const TextScore score = evaluate_text(ctx, with_progress(model, total, line), *data, o.context, o.batch_tokens, o.max_tokens);
    BRAID_CHECK(score.num_targets > 0, "--data must hold two tokens in a row of one document, got ", path, " with ", score.num_tokens, " tokens");
    table.add({path, std::to_string(score.num_tokens), std::to_string(score.num_targets), number(score.loss(), 6), number(score.perplexity(), 6),
               number(score.bits_per_byte(), 6)});
    list.push_back({{"data", path},
                    {"tokens", score.num_tokens},
                    {"targets", score.num_targets},
                    {"loss", score.loss()},
                    {"perplexity", score.perplexity()},
                    {"bits_per_token", score.bits_per_byte()}});
  }
  table.print(std::cout);
  return {{"task", "ppl"}, {"context", o.context}, {"results", list}};
}

Json recall(Context& ctx, const HybridLm& model, const EvalOptions& o) {
  const auto task = make_task(o.recall, o.seed, model.config().vocab_size);
  const RecallScore score = [&] {
    LiveLine line;
    return evaluate_recall(ctx, with_progress(model, o.examples * task->sequence_length(), line), *task, o.examples, o.batch_examples);
  }();
  Table table({"task", "examples", "answers", "accuracy", "chance", "loss"});
  table.add({o.recall.task, std::to_string(score.num_examples), std::to_string(score.num_answers), number(score.accuracy(), 4),
             number(task->chance(), 4), number(score.loss(), 6)});
  table.print(std::cout);
  return {{"task", "recall"},
          {"recall", o.recall.task},
          {"examples", score.num_examples},
          {"answers", score.num_answers},
          {"correct", score.num_correct},
          {"accuracy", score.accuracy()},
          {"chance", task->chance()},
          {"loss", score.loss()}};
}

}  // namespace

int run_eval(const Arguments& arguments) {
  EvalOptions o;
  Options options("eval", "perplexity on token data sets, or accuracy on a recall task",
                  "braid eval --model RUN --task ppl --data val.h5 --json scores.json");
  declare(options, o);
  if (!options.parse(arguments)) return kDone;
  check(o, options);
  const DType dtype = parse_compute_dtype("--dtype", o.dtype);
  Context ctx = make_context(o.device, dtype);
  const auto model = load_named_model(ctx, "--model", o.model, accumulator(dtype));
  if (dtype == DType::bf16) set_compute_dtype(ctx, *model, dtype);
  const Json result = o.task == "ppl" ? perplexity(ctx, *model, o) : recall(ctx, *model, o);
  if (!o.json.empty()) write_json(o.json, result);
  return kDone;
}

}  // namespace braid::cli
