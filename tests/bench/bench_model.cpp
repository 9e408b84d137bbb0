// braid_bench_model: training steps and decoding of a preset on a GPU. Needs no Boost.
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include "core/error.h"
#include "cuda/runtime/clock.h"
#include "cuda/runtime/memory.h"
#include "cuda/runtime/runtime.h"
#include "models/presets.h"
#include "train/model_bench.h"

namespace {

constexpr char kUsage[] =
    "braid_bench_model --model PRESET [--steps N] [--batch-tokens N] [--context N] [--micro N] [--recompute none|mlp|block] [--recompute-layers N]\n"
    "                  [--equal] [--f32] [--profile] [--memory] [--row] [--decode N] [--prompt N] [--peak TFLOPS]\n"
    "--equal: every document fills a context; --row: one line for a table\n";

struct Options {
  std::string model;
  braid::StepBenchOptions step{.peak_flops = 803e12};
  int64_t decode = 0, prompt = 100;
  bool memory = false, row = false;
};

int64_t whole(const std::string& name, const std::string& text) {
  int64_t result = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), result);
  BRAID_CHECK(error == std::errc{} && end == text.data() + text.size() && result >= -1, name, " must be a whole number, got ", text);
  return result;
}

Options parse(int argc, char** argv) {
  Options o;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    const auto value = [&]() -> std::string {
      BRAID_CHECK(i + 1 < argc, name, " must be followed by a value");
      return argv[++i];
    };
    if (name == "--model") o.model = value();
    else if (name == "--steps") o.step.steps = whole(name, value());
    else if (name == "--batch-tokens") o.step.batch_tokens = whole(name, value());
    else if (name == "--context") o.step.context = whole(name, value());
    else if (name == "--micro") o.step.micro_batches = whole(name, value());
    else if (name == "--recompute-layers") o.step.recompute_layers = whole(name, value());
    else if (name == "--peak") o.step.peak_flops = 1e12 * static_cast<double>(whole(name, value()));
    else if (name == "--decode") o.decode = whole(name, value());
    else if (name == "--prompt") o.prompt = whole(name, value());
    else if (name == "--f32") o.step.dtype = braid::DType::f32;
    else if (name == "--profile") o.step.profile = true;
    else if (name == "--memory") o.memory = true;
    else if (name == "--equal") o.step.equal_work = true;
    else if (name == "--row") o.row = true;
    else if (name == "--recompute") {
      const std::string level = value();
      BRAID_CHECK(level == "none" || level == "mlp" || level == "block", "--recompute must be none, mlp or block, got ", level);
      o.step.recompute = level == "block" ? braid::RecomputeLevel::block : level == "mlp" ? braid::RecomputeLevel::mlp : braid::RecomputeLevel::none;
    } else braid::fail("unknown option ", name, "\n", kUsage);
  }
  BRAID_CHECK(!o.model.empty(), "--model must be given\n", kUsage);
  return o;
}

/// Since the system started this process; what happened before main is counted.
double seconds_since_process_start() {
  std::ifstream file("/proc/self/stat");
  std::string text;
  std::getline(file, text);
  std::istringstream fields(text.substr(text.rfind(')') + 1));  // from the third field on
  std::string field;
  for (int i = 3; i <= 22; ++i) fields >> field;
  timespec now = {};
  clock_gettime(CLOCK_BOOTTIME, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec) - std::stod(field) / static_cast<double>(sysconf(_SC_CLK_TCK));
}

void print_memory() {
  for (const auto& held : braid::cuda::memory_held_at_peak())
    std::printf("  %-28s %8.3f GB\n", held.owner.c_str(), static_cast<double>(held.bytes) / 1e9);
}

void print_profile(const braid::StepBench& bench) {
  double total = 0;
  for (const auto& share : bench.shares) total += share.forward_ms + share.backward_ms;
  for (const auto& share : bench.shares)
    std::printf("  %-24s %6lld calls %9.2f + %9.2f ms %5.1f %%\n", share.op.c_str(), static_cast<long long>(share.num_calls), share.forward_ms,
                share.backward_ms, 100 * (share.forward_ms + share.backward_ms) / total);
  std::printf("  %-24s %34.2f ms\n", "all operators", total);
}

const char* name_of(braid::RecomputeLevel level) {
  return level == braid::RecomputeLevel::none ? "none" : level == braid::RecomputeLevel::mlp ? "mlp" : "block";
}

/// How far steps are apart, of their median: as they are, and once what the chip's clock explains is taken off (time = a + b / clock, by least
/// squares): a chip at its power limit changes its clock by more than steps may differ.
struct Spread {
  double as_is = 0, at_one_clock = 0;
};
Spread spread_of(const braid::StepBench& bench, const std::vector<double>& mhz) {
  const std::vector<double> ms(bench.step_ms.begin() + bench.num_settling, bench.step_ms.end());
  const std::vector<double> clock(mhz.begin() + bench.num_settling, mhz.begin() + bench.step_ms.size());
  const auto n = static_cast<double>(ms.size());
  double mean_x = 0, mean_y = 0, xx = 0, xy = 0;
  for (size_t i = 0; i < ms.size(); ++i) mean_x += 1 / clock[i] / n, mean_y += ms[i] / n;
  for (size_t i = 0; i < ms.size(); ++i) {
    const double x = 1 / clock[i] - mean_x;
    xx += x * x, xy += x * (ms[i] - mean_y);
  }
  const double slope = ms.size() > 2 && xx > 0 ? std::max(0.0, xy / xx) : 0;
  std::vector<double> rest;
  for (size_t i = 0; i < ms.size(); ++i) rest.push_back(ms[i] - slope / clock[i]);
  const auto apart = [&](const std::vector<double>& values) {
    return (*std::max_element(values.begin(), values.end()) - *std::min_element(values.begin(), values.end())) / bench.median_ms;
  };
  return {apart(ms), apart(rest)};
}

constexpr char kHeader[] =
    "model               micro recompute documents   ms: median   least    most  apart  at one clock   first  /median  tokens/s    MFU  peak GB  "
    "first done s";

void print_training(braid::Context& ctx, const Options& o) {
  double first_done = 0;
  braid::cuda::ClockMarks clock(ctx, o.step.steps + 1);
  const braid::StepBenchObserver observer{.on_step =
                                              [&](const braid::StepReport& report) {
                                                if (report.step == 1) first_done = seconds_since_process_start();
                                              },
                                          .between = [&] { clock.mark(ctx); }};
  const braid::StepBench bench = braid::bench_training(ctx, braid::preset(o.model), o.step, observer);
  const std::vector<double> mhz = clock.mhz(ctx);
  if (!o.row) std::printf("%s\n", kHeader);
  const Spread spread = spread_of(bench, mhz);
  std::printf("%-19s %5lld %-9s %-9s %13.1f %7.1f %7.1f %5.1f%% %12.1f%% %7.1f %8.2f %9.0f %5.1f%% %8.1f %13.2f\n", o.model.c_str(),
              static_cast<long long>(o.step.micro_batches), name_of(o.step.recompute), o.step.equal_work ? "equal" : "mixed", bench.median_ms,
              bench.least_ms, bench.most_ms, 100 * spread.as_is, 100 * spread.at_one_clock, bench.step_ms[0], bench.step_ms[0] / bench.median_ms,
              bench.tokens_per_s, 100 * bench.mfu, static_cast<double>(bench.peak_bytes) / 1e9, first_done);
  if (!o.row) {
    std::printf("%.0fM parameters, %lld tokens a step, context %lld, %.1f GB taken from the device, loss %.4f to %.4f; steps, ms:",
                static_cast<double>(bench.parameters) / 1e6, static_cast<long long>(o.step.batch_tokens), static_cast<long long>(o.step.context),
                static_cast<double>(braid::cuda::most_reserved_bytes()) / 1e9, bench.first_loss, bench.last_loss);
    for (double ms : bench.step_ms) std::printf(" %.1f", ms);
    std::printf("\nMHz in each:");
    for (double each : mhz) std::printf(" %.0f", each);
    std::printf("\n");
  }
  if (o.step.profile) print_profile(bench);
  if (o.memory) print_memory();
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const Options o = parse(argc, argv);
    if (o.step.profile) ::setenv("CUDA_LAUNCH_BLOCKING", "1", 1);  // operators are timed on the host
    braid::Context ctx = braid::cuda::make_context();
    if (o.step.steps > 0) print_training(ctx, o);
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
