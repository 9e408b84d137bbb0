// How fast a model trains and decodes, with random first values and random tokens: what `braid bench --model` and tests/bench print.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "core/profile.h"
#include "train/trainer.h"

namespace braid {

struct StepBenchOptions {
  int64_t steps = 10, batch_tokens = 32768, context = 4096, micro_batches = 1;
  DType dtype = DType::bf16;
  RecomputeLevel recompute = RecomputeLevel::none;
  int64_t recompute_layers = -1;
  double peak_flops = 0;
  bool equal_work = false;  // every document fills a context, so that steps differ in nothing; else lengths are mixed
  bool profile = false;     // one step more, each operator measured
};

/// An operator's share of a step.
struct StepShare {
  std::string op;
  int64_t num_calls = 0;
  double forward_ms = 0, backward_ms = 0;
};

struct StepBench {
  std::vector<double> step_ms;                      // of every step
  size_t num_settling = 0;                          // the first third of them
  double median_ms = 0, least_ms = 0, most_ms = 0;  // of those after it
  double tokens_per_s = 0, mfu = 0, first_loss = 0, last_loss = 0;
  int64_t parameters = 0, peak_bytes = 0;
  std::vector<StepShare> shares;  // largest first
};

struct StepBenchObserver {
  std::function<void(const StepReport&)> on_step;  // as each ends
  std::function<void()> between = [] {};           // before the first step's work is given to the device, between steps, and after the last's
};

/// Packed documents of 1 token to 4 contexts, cut at contexts.
StepBench bench_training(Context& ctx, const ModelConfig& config, const StepBenchOptions& options, const StepBenchObserver& observer);

struct DecodeBench {
  double prefill_ms = 0, first_ms = 0, median_ms = 0;  // of the prompt, of the token that records the graph, of the tokens after it
  int64_t state_bytes = 0;
  bool has_graph = false;
};

/// A prompt of `prompt` random tokens, then `tokens` more, always the likeliest.
DecodeBench bench_decoding(Context& ctx, const ModelConfig& config, DType dtype, int64_t prompt, int64_t tokens);

}  // namespace braid
