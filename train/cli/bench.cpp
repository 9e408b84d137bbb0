// braid bench: operators and a training step, beside what the CPU or the GPU could do at best.
#include <algorithm>
#include <iostream>

#include "io/json.h"
#include "models/cost.h"
#include "models/presets.h"
#include "train/cli/bench_ops.h"
#include "train/cli/bench_step.h"
#include "train/cli/commands.h"
#include "train/cli/cpu_speed.h"
#include "train/cli/options.h"
#include "train/cli/table.h"
#include "train/metrics.h"
#ifdef BRAID_WITH_CUDA
#include "train/cli/bench_gpu/bench_gpu.h"
#include "train/model_bench.h"
#endif

namespace braid::cli {
namespace {

/// Ceilings of this CPU with these threads.
struct Ceilings {
  double flops_per_s, bytes_per_s;
  double floor_ms(double flops, double bytes) const { return 1e3 * std::max(flops / flops_per_s, bytes / bytes_per_s); }
};

Json bench_ceilings(const Ceilings& ceilings, Context& ctx) {
  std::cout << "ceilings with " << ctx.num_threads() << " threads: " << number(ceilings.flops_per_s / 1e9) << " GFLOP/s (float32 product), "
            << number(ceilings.bytes_per_s / 1e9) << " GB/s (copy, read + write)\n\n";
  return {{"threads", ctx.num_threads()}, {"gemm_flops_per_s", ceilings.flops_per_s}, {"copy_bytes_per_s", ceilings.bytes_per_s}};
}

Json bench_gemm(Context& ctx) {
  constexpr int64_t kSize = 1024, kRounds = 6, kRepeats = 4;
  // In turns, the best of each: what else the machine does falls on both.
  double flops = 0, eigen = 1e9;
  for (int round = 0; round < kRounds; ++round) {
    flops = std::max(flops, gemm_flops_per_second(ctx, kSize, kRepeats));
    eigen = std::min(eigen, eigen_gemm_seconds(kSize, kRepeats));
  }
  const double ours = 2.0 * kSize * kSize * kSize / flops;
  std::cout << "float32 product 1024 x 1024 x 1024: " << number(1e3 * ours) << " ms on all threads, Eigen alone on one " << number(1e3 * eigen)
            << " ms: " << number(eigen / ours) << " times as fast\n\n";
  return {{"ms", 1e3 * ours}, {"eigen_one_thread_ms", 1e3 * eigen}, {"speedup", eigen / ours}};
}

bool wanted(const std::vector<std::string>& ops, const std::string& op) { return ops.empty() || std::find(ops.begin(), ops.end(), op) != ops.end(); }

Json bench_operators(Context& ctx, const Ceilings& ceilings, const std::vector<std::string>& ops, double budget_ms) {
  Table table({"operator", "shape", "forward ms", "floor", "x floor", "fwd+bwd ms", "floor", "x floor", "MB", "GFLOP", "extra MB", "tokens/s"});
  Json list = Json::array();
  for (const BenchCase& c : operator_cases(ctx)) {
    if (!wanted(ops, c.op)) continue;
    const double forward = time_ms([&] { c.forward(ctx); }, budget_ms), both = time_ms([&] { c.forward_backward(ctx); }, budget_ms);
    const double floor = ceilings.floor_ms(c.forward_flops, c.forward_bytes);
    const double both_floor = floor + ceilings.floor_ms(c.backward_flops, c.backward_bytes);
    const double bytes = c.forward_bytes + c.backward_bytes, flops = c.forward_flops + c.backward_flops;
    const int64_t extra = std::max<int64_t>(0, peak_bytes_above([&] { c.forward_backward(ctx); }) - c.result_bytes);
    const double tokens_per_s = 1e3 * static_cast<double>(c.num_tokens) / both;
    table.add({c.op, c.shape, number(forward), number(floor), number(forward / floor), number(both), number(both_floor), number(both / both_floor),
               number(bytes / 1e6), number(flops / 1e9), number(static_cast<double>(extra) / 1e6), short_number(tokens_per_s)});
    list.push_back({{"op", c.op},
                    {"shape", c.shape},
                    {"forward_ms", forward},
                    {"forward_floor_ms", floor},
                    {"forward_x_floor", forward / floor},
                    {"forward_backward_ms", both},
                    {"forward_backward_floor_ms", both_floor},
                    {"forward_backward_x_floor", both / both_floor},
                    {"bytes", bytes},
                    {"flops", flops},
                    {"extra_bytes", extra},
                    {"tokens_per_s", tokens_per_s}});
  }
  table.print(std::cout);
  std::cout << "floor: max(operations / product speed, bytes / copy speed), counted, at the speeds above; below 1 x floor the data stayed in the\n"
               "caches or, where operations make the floor, the cores were faster than while that speed was measured; MB and GFLOP: of forward\n"
               "and backward; extra MB: most memory of tensors at once besides inputs, outputs and gradients\n\n";
  return list;
}

Json bench_forms(Context& ctx, const std::vector<std::string>& ops, double budget_ms) {
  Table table({"recurrence (K = V = 64, T = 2048, 8 heads)", "decay", "chunked fwd+bwd ms", "token by token ms", "speedup"});
  Json list = Json::array();
  for (const FormPair& pair : recurrence_pairs(ctx)) {
    if (!wanted(ops, pair.op)) continue;
    const double chunked = time_ms([&] { pair.chunked.forward_backward(ctx); }, budget_ms);
    const double token = time_ms([&] { pair.token.forward_backward(ctx); }, budget_ms);
    table.add({pair.op, pair.decay, number(chunked), number(token), number(token / chunked)});
    list.push_back({{"op", pair.op}, {"decay", pair.decay}, {"chunked_ms", chunked}, {"token_ms", token}, {"speedup", token / chunked}});
  }
  if (list.empty()) return list;
  table.print(std::cout);
  std::cout << '\n';
  return list;
}

Json bench_step(Context& ctx, const std::string& model, int64_t batch_tokens, int64_t context, double peak) {
  const ModelConfig config = model.empty() ? step_config() : preset(model);
  const StepTimes times = time_step(ctx, config, batch_tokens, context);
  const double flops = model_cost(config, context).flops_per_token() * static_cast<double>(batch_tokens);
  std::cout << "training step, " << (model.empty() ? "4 layers of width 512 (gated delta rule, one of attention)" : model) << ", " << batch_tokens
            << " tokens: " << number(times.total_ms) << " ms, " << short_number(1e3 * static_cast<double>(batch_tokens) / times.total_ms)
            << " tokens/s, " << number(100 * flops / (peak * times.total_ms / 1e3)) << "% of the product's speed\n";
  Table table({"part", "calls", "forward ms", "backward ms", "share"});
  Json parts = Json::array();
  for (const StepPart& part : times.parts) {
    const double share = (part.forward_ms + part.backward_ms) / times.total_ms;
    table.add({part.name, std::to_string(part.num_calls), number(part.forward_ms), number(part.backward_ms), number(100 * share) + "%"});
    parts.push_back(
        {{"part", part.name}, {"calls", part.num_calls}, {"forward_ms", part.forward_ms}, {"backward_ms", part.backward_ms}, {"share", share}});
  }
  table.print(std::cout);
  std::cout << "matrix products (linear, linear_cross_entropy): " << number(100 * times.product_share()) << "% of the step\n";
  return {{"model", model},       {"batch_tokens", batch_tokens},           {"context", context},
          {"ms", times.total_ms}, {"product_share", times.product_share()}, {"parts", parts}};
}

struct BenchOptions {
  std::vector<std::string> ops;
  std::string model, json;
  int64_t batch_tokens = 2048, context = 512, budget_ms = 300;
  DeviceOptions device;
};

void check_names(Context& ctx, const std::vector<std::string>& ops) {
  if (ops.empty()) return;
  std::vector<std::string> known;
  for (const BenchCase& c : operator_cases(ctx))
    if (known.empty() || known.back() != c.op) known.push_back(c.op);
  std::string names;
  for (const std::string& name : known) names += (names.empty() ? "" : ", ") + name;
  for (const std::string& op : ops)
    BRAID_CHECK(std::find(known.begin(), known.end(), op) != known.end(), "--op must be one of ", names, ", got ", op);
}

#ifdef BRAID_WITH_CUDA
/// The operators of the GPU's own list (bench_gpu/cases.h). Returns the exit status.
int bench_ops_on_gpu(Context& ctx, const BenchOptions& o) {
  check_gpu_ops(o.ops);
  const std::vector<GpuBenchRow> rows = bench_gpu(ctx, {.ops = o.ops, .shapes = {}, .budget_ms = static_cast<double>(o.budget_ms)});
  if (!o.json.empty()) write_json(o.json, Json::parse(to_json(ctx, rows)));
  const std::string failed = failures(rows);
  if (!failed.empty()) std::cerr << "braid bench: " << failed << '\n';
  return failed.empty() ? kDone : kCheckFailed;
}

Json bench_step_on_gpu(Context& ctx, const BenchOptions& o) {
  const StepBench bench = bench_training(
      ctx, preset(o.model), {.batch_tokens = o.batch_tokens, .context = o.context, .peak_flops = kFloorFlopsPerSecond, .equal_work = true},
      {.on_step = [](const StepReport&) {}});
  std::cout << "training step, " << o.model << ", bf16, " << o.batch_tokens << " tokens in sequences of " << o.context << ": "
            << number(bench.median_ms) << " ms (median of " << bench.step_ms.size() - bench.num_settling << "; the first took "
            << number(bench.step_ms.front()) << "), " << short_number(bench.tokens_per_s) << " tokens/s, " << number(100 * bench.mfu) << "% of "
            << number(kFloorFlopsPerSecond / 1e12) << " TFLOP/s, " << short_number(static_cast<double>(bench.peak_bytes)) << "B held at most\n";
  return {
      {"model", o.model},         {"dtype", "bf16"},  {"batch_tokens", o.batch_tokens},     {"context", o.context},          {"ms", bench.median_ms},
      {"step_ms", bench.step_ms}, {"mfu", bench.mfu}, {"tokens_per_s", bench.tokens_per_s}, {"peak_bytes", bench.peak_bytes}};
}
#endif

}  // namespace

int run_bench(const Arguments& arguments) {
  BenchOptions o;
  Options options("bench", "time operators and a training step beside their floor: max(bytes / copy speed, operations / product speed)",
                  "braid bench --op linear gated_delta_rule\n  braid bench --model tiny-gdn-3-1 --json bench.json");
  options.list("op", "only these operators, and no training step", o.ops);
  options.text("model", "only a training step, of this preset", o.model);
  options.integer("batch-tokens", "tokens of the training step", o.batch_tokens, 1);
  options.integer("context", "tokens of its sequences", o.context, 1);
  options.integer("budget-ms", "time spent on each number", o.budget_ms, 1, 600000);
  options.device(o.device);
  options.json(o.json);
  if (!options.parse(arguments)) return kDone;
  require_writable_file("--json", o.json);
  BRAID_CHECK(o.ops.empty() || o.model.empty(), "--op and --model must not be given together, got both");
  BRAID_CHECK(o.batch_tokens % o.context == 0, "--batch-tokens must be a multiple of --context ", o.context, ", got ", o.batch_tokens);
  Context ctx = make_context(o.device, DType::f32);
  if (!o.model.empty()) preset(o.model);
#ifdef BRAID_WITH_CUDA
  if (!ctx.on_cpu()) {
    if (o.model.empty()) return bench_ops_on_gpu(ctx, o);
    const Json result = bench_step_on_gpu(ctx, o);
    if (!o.json.empty()) write_json(o.json, result);
    return kDone;
  }
#endif
  check_names(ctx, o.ops);
  const Ceilings ceilings{gemm_flops_per_second(ctx, 1024), copy_bytes_per_second(ctx)};
  Json result = {{"ceilings", bench_ceilings(ceilings, ctx)}};
  const auto budget = static_cast<double>(o.budget_ms);
  if (o.model.empty()) {
    if (o.ops.empty()) result["gemm_1024"] = bench_gemm(ctx);
    result["operators"] = bench_operators(ctx, ceilings, o.ops, budget);
    result["chunked_against_token"] = bench_forms(ctx, o.ops, budget);
  }
  if (o.ops.empty()) result["step"] = bench_step(ctx, o.model, o.batch_tokens, o.context, ceilings.flops_per_s);
  if (!o.json.empty()) write_json(o.json, result);
  return kDone;
}

}  // namespace braid::cli
