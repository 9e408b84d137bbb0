// One token of each sequence, forward only: what decoding runs. States are written where they were read.
#include <cmath>

#include "ops/attention.h"
#include "ops/recurrence/gated_delta_rule.h"
#include "ops/recurrence/gated_linear_attention.h"
#include "ops/recurrence/linear_recurrence.h"
#include "train/cli/bench_gpu/make.h"

namespace braid::cli {
namespace {

constexpr int64_t H = 16, D = 128, kChannels = 2048;

/// The case without its backward. `kept_bytes` of the outputs are inputs that were written over.
template <Differentiable Op>
GpuRun make_step(Context& ctx, const typename Op::Inputs& in, const typename Op::Attrs& attrs, double flops, int64_t kept_bytes = 0) {
  GpuRun run = make_run<Op>(ctx, in, attrs, flops);
  run.cost.backward_bytes = run.cost.backward_flops = 0;
  run.forward_and_backward = {};
  run.output_bytes -= kept_bytes;
  return run;
}

/// `S` sequences of one token each.
void add_recurrences(std::vector<GpuCase>& cases, int64_t S) {
  const std::string tokens = "1 token x " + std::to_string(S) + ", ", heads = "H 16 K 128 V 128, ";
  const Sequences seqs = Sequences::dense(S, 1);
  const double elements = 1.0 * S * H * D * D;
  cases.push_back({"linear_recurrence", tokens + "D 2048", [=](Context& ctx) {
                     Values values(ctx);
                     const Shape shape = {S, kChannels};
                     const Tensor state = values.f32(shape);
                     return make_step<LinearRecurrence>(ctx, {values.uniform(shape), values.uniform(shape, -0.2, 0), state},
                                                        {.seqs = seqs, .in_place = true}, 3.0 * S * kChannels, state.nbytes());
                   }});
  cases.push_back({"gated_linear_attention", tokens + heads + "per channel", [=](Context& ctx) {
                     Values values(ctx);
                     const double unit = 1 / std::sqrt(static_cast<double>(D));
                     const Shape rows = {S, H, D};
                     const Tensor q = values.uniform(rows, -unit, unit), k = values.uniform(rows, -unit, unit), state = values.f32({S, H, D, D});
                     return make_step<GatedLinearAttention>(ctx, {q, k, values.uniform(rows), values.uniform(rows, -0.2, 0), state},
                                                            {.seqs = seqs, .scale = {}, .in_place = true}, 5 * elements, state.nbytes());
                   }});
  cases.push_back({"gated_delta_rule", tokens + heads + "per head", [=](Context& ctx) {
                     Values values(ctx);
                     const Shape rows = {S, H, D};
                     const Tensor q = values.uniform(rows), k = values.uniform(rows), v = values.uniform(rows), state = values.f32({S, H, D, D});
                     return make_step<GatedDeltaRule>(ctx, {q, k, v, values.f32({S, H}, 0, 1), values.f32({S, H}, -0.2, 0), state},
                                                      {.seqs = seqs, .scale = {}, .qk_l2norm = true, .in_place = true}, 7 * elements, state.nbytes());
                   }});
}

/// A query against a cache of `num_keys` rows, the token's own included.
void add_attention(std::vector<GpuCase>& cases, int64_t HK, int64_t num_keys) {
  const std::string heads = "H 16" + (HK == H ? "" : " HK " + std::to_string(HK)) + " D 128, ";
  cases.push_back({"attention", "1 token, " + heads + std::to_string(num_keys) + " keys", [=](Context& ctx) {
                     Values values(ctx);
                     const Shape cache = {num_keys, HK, D};
                     return make_step<Attention>(ctx, {values.uniform({1, H, D}), values.uniform(cache), values.uniform(cache)},
                                                 {.q_seqs = Sequences::single(1), .k_seqs = Sequences::single(num_keys)}, 4.0 * H * D * num_keys);
                   }});
}

}  // namespace

std::vector<GpuCase> step_cases() {
  std::vector<GpuCase> cases;
  for (const int64_t S : {1, 64}) add_recurrences(cases, S);
  for (const int64_t HK : {H, int64_t{4}})
    for (const int64_t num_keys : {4096, 65536}) add_attention(cases, HK, num_keys);
  return cases;
}

}  // namespace braid::cli
