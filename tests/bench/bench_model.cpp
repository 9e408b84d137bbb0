// braid_bench_model: training steps and decoding of a preset on a GPU. Needs no Boost.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <string>

#include "core/error.h"
#include "cuda/runtime/memory.h"
#include "cuda/runtime/runtime.h"
#include "models/presets.h"
#include "train/model_bench.h"

namespace {

constexpr char kUsage[] =
    "braid_bench_model --model PRESET [--steps N] [--batch-tokens N] [--context N] [--micro N] [--recompute none|mlp|block] [--recompute-layers N]\n"
    "                  [--f32] [--profile] [--memory] [--decode N] [--prompt N] [--peak TFLOPS]\n";

struct Options {
  std::string model;
  braid::StepBenchOptions step{.peak_flops = 803e12};
  int64_t decode = 0, prompt = 100;
  bool memory = false;
};

Options parse(int argc, char** argv) {
  Options o;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    const auto value = [&]() -> std::string {
      BRAID_CHECK(i + 1 < argc, name, " must be followed by a value");
      return argv[++i];
    };
    if (name == "--model") o.model = value();
    else if (name == "--steps") o.step.steps = std::stoll(value());
    else if (name == "--batch-tokens") o.step.batch_tokens = std::stoll(value());
    else if (name == "--context") o.step.context = std::stoll(value());
    else if (name == "--micro") o.step.micro_batches = std::stoll(value());
    else if (name == "--recompute-layers") o.step.recompute_layers = std::stoll(value());
    else if (name == "--peak") o.step.peak_flops = 1e12 * std::stod(value());
    else if (name == "--decode") o.decode = std::stoll(value());
    else if (name == "--prompt") o.prompt = std::stoll(value());
    else if (name == "--f32") o.step.dtype = braid::DType::f32;
    else if (name == "--profile") o.step.profile = true;
    else if (name == "--memory") o.memory = true;
    else if (name == "--recompute") {
      const std::string level = value();
      o.step.recompute = level == "block" ? braid::RecomputeLevel::block : level == "mlp" ? braid::RecomputeLevel::mlp : braid::RecomputeLevel::none;
    } else braid::fail("unknown option ", name, "\n", kUsage);
  }
  BRAID_CHECK(!o.model.empty(), "--model must be given\n", kUsage);
  return o;
}

void print_training(braid::Context& ctx, const Options& o, std::chrono::steady_clock::time_point start) {
  const auto on_step = [&](const braid::StepReport& report) {
    if (report.step == 1)
      std::printf("first step done %.2f s after the start of the program\n",
                  std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  };
  const braid::StepBench bench = braid::bench_training(ctx, braid::preset(o.model), o.step, on_step);
  std::printf("%s: %.0fM parameters, %lld tokens, context %lld: %.1f ms a step, %.0f tokens/s, MFU %.1f %%, %.1f GB, loss %.4f to %.4f\n",
              o.model.c_str(), static_cast<double>(bench.parameters) / 1e6, static_cast<long long>(o.step.batch_tokens),
              static_cast<long long>(o.step.context), bench.median_ms, bench.tokens_per_s, 100 * bench.mfu,
              static_cast<double>(bench.peak_bytes) / 1e9, bench.first_loss, bench.last_loss);
  std::printf("steps, ms:");
  for (double ms : bench.step_ms) std::printf(" %.1f", ms);
  std::printf("\n");
  double total = 0;
  for (const auto& share : bench.shares) total += share.forward_ms + share.backward_ms;
  for (const auto& share : bench.shares)
    std::printf("  %-24s %6lld calls %9.2f + %9.2f ms %5.1f %%\n", share.op.c_str(), static_cast<long long>(share.num_calls), share.forward_ms,
                share.backward_ms, 100 * (share.forward_ms + share.backward_ms) / total);
  if (!bench.shares.empty()) std::printf("  %-24s %34.2f ms\n", "all operators", total);
  if (!o.memory) return;
  for (const auto& held : braid::cuda::memory_held_at_peak())
    std::printf("  %-28s %8.3f GB\n", held.owner.c_str(), static_cast<double>(held.bytes) / 1e9);
}

}  // namespace

int main(int argc, char** argv) {
  const auto start = std::chrono::steady_clock::now();
  try {
    const Options o = parse(argc, argv);
    if (o.step.profile) ::setenv("CUDA_LAUNCH_BLOCKING", "1", 1);  // operators are timed on the host
    braid::Context ctx = braid::cuda::make_context();
    if (o.step.steps > 0) print_training(ctx, o, start);
    if (o.decode > 0) {
      const braid::DecodeBench bench = braid::bench_decoding(ctx, braid::preset(o.model), o.step.dtype, o.prompt, o.decode);
      std::printf("%s: decoding after %lld tokens: prompt %.1f ms, first token %.1f ms, then %.3f ms a token (%s), state %.1f MB\n", o.model.c_str(),
                  static_cast<long long>(o.prompt), bench.prefill_ms, bench.first_ms, bench.median_ms, bench.has_graph ? "graph" : "no graph",
                  static_cast<double>(bench.state_bytes) / 1e6);
    }
    return 0;
  } catch (const std::exception& error) {
    std::cerr << "braid_bench_model: " << error.what() << '\n';
    return 2;
  }
}
