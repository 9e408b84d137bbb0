#include "train/model_bench.h"

#include <algorithm>
#include <chrono>

#include "models/cost.h"
#include "train/data_loader.h"
#include "train/decoder.h"

namespace braid {
namespace {

using Clock = std::chrono::steady_clock;

double ms_since(Clock::time_point start) { return std::chrono::duration<double, std::milli>(Clock::now() - start).count(); }

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

/// Documents of 1 token to 4 contexts, most of them short; or all of a context.
std::shared_ptr<const TokenSource> random_documents(int64_t tokens, int64_t context, int64_t vocab, bool equal) {
  Random random(3);
  std::vector<std::vector<int64_t>> documents;
  for (int64_t left = tokens; left > 0;) {
    const double share = random.uniform();
    const int64_t wanted = equal ? context : 1 + static_cast<int64_t>(share * share * share * 4.0 * static_cast<double>(context));
    auto& document = documents.emplace_back(std::min(left, wanted));
    for (int64_t& token : document) token = static_cast<int64_t>(random.below(vocab));
    left -= static_cast<int64_t>(document.size());
  }
  return make_token_source(documents);
}

std::vector<StepShare> shares_of(Profile& profile) {
  std::vector<StepShare> shares;
  for (const auto& [op, entry] : profile.ops) shares.push_back({op, entry.num_calls, entry.forward_ms, entry.backward_ms});
  std::stable_sort(shares.begin(), shares.end(),
                   [](const StepShare& a, const StepShare& b) { return a.forward_ms + a.backward_ms > b.forward_ms + b.backward_ms; });
  return shares;
}

}  // namespace

StepBench bench_training(Context& ctx, const ModelConfig& config, const StepBenchOptions& o, const StepBenchObserver& observer) {
  HybridLm model(config);
  initialize(ctx, model, DType::f32, config.initializer_range, 1);
  const auto data = random_documents(4 * o.batch_tokens, o.context, model.config().vocab_size, o.equal_work);
  DataLoader loader({{data}}, {.batch_tokens = o.batch_tokens, .context = o.context, .seed = 1, .share = {.num_micro_batches = o.micro_batches}});
  TrainOptions train;
  train.schedule = {.kind = ScheduleKind::constant, .peak = 1e-4, .steps = o.steps + (o.profile ? 1 : 0)};
  train.compute_dtype = o.dtype;
  train.recompute = o.recompute;
  train.recompute_layers = o.recompute_layers;
  train.cost = model_cost(config, o.context);
  train.peak_flops = o.peak_flops;
  Trainer trainer(ctx, model, score_with(model), loader, train);
  StepBench result;
  result.parameters = model.num_parameters();
  std::vector<double> mfu;
  const auto finish = [&] {
    const StepReport report = trainer.finish_step();
    result.step_ms.push_back(1e3 * static_cast<double>(o.batch_tokens) / report.tokens_per_s);
    if (report.step == 1) result.first_loss = report.loss;
    result.last_loss = report.loss;
    result.peak_bytes = report.memory_bytes;
    mfu.push_back(report.mfu);
    observer.on_step(report);
  };
  while (trainer.steps_started() < o.steps) {
    observer.between();
    trainer.start_step();
    while (trainer.steps_started() - trainer.steps_done() > trainer.steps_ahead()) finish();
  }
  observer.between();
  while (trainer.steps_done() < trainer.steps_started()) finish();
  result.num_settling = result.step_ms.size() > 1 ? std::max<size_t>(1, result.step_ms.size() / 3) : 0;
  const std::vector<double> settled(result.step_ms.begin() + result.num_settling, result.step_ms.end());
  result.median_ms = median(settled);
  result.least_ms = *std::min_element(settled.begin(), settled.end());
  result.most_ms = *std::max_element(settled.begin(), settled.end());
  result.tokens_per_s = 1e3 * static_cast<double>(o.batch_tokens) / result.median_ms;
  result.mfu = median(std::vector<double>(mfu.begin() + result.num_settling, mfu.end()));
  if (!o.profile) return result;
  Profile profile;
  ctx.profile = &profile;
  trainer.step();
  ctx.profile = nullptr;
  result.shares = shares_of(profile);
  return result;
}

DecodeBench bench_decoding(Context& ctx, const ModelConfig& config, DType dtype, int64_t prompt, int64_t tokens) {
  HybridLm model(config);
  initialize(ctx, model, DType::f32, config.initializer_range, 1);
  set_compute_dtype(ctx, model, dtype);
  Random random(4);
  std::vector<int64_t> text(prompt);
  for (int64_t& token : text) token = static_cast<int64_t>(random.below(model.config().vocab_size));
  Decoder decoder(ctx, model, prompt + tokens);
  DecodeBench result;
  auto start = Clock::now();
  std::vector<double> logits = decoder.prefill(text, 4096);
  result.prefill_ms = ms_since(start);
  std::vector<double> times;
  for (int64_t i = 0; i < tokens; ++i) {
    start = Clock::now();
    logits = decoder.advance(std::max_element(logits.begin(), logits.end()) - logits.begin());
    times.push_back(ms_since(start));
  }
  result.first_ms = times.empty() ? 0 : times.front();
  if (!times.empty()) times.erase(times.begin());
  result.median_ms = median(times);
  result.state_bytes = decoder.state_bytes();
  result.has_graph = decoder.has_graph();
  return result;
}

}  // namespace braid
