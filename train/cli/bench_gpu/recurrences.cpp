#include <cmath>

#include "ops/attention.h"
#include "ops/recurrence/gated_delta_rule.h"
#include "ops/recurrence/gated_linear_attention.h"
#include "ops/recurrence/linear_recurrence.h"
#include "train/cli/bench_gpu/make.h"

namespace braid::cli {
namespace {

constexpr int64_t N = kBenchTokens;

enum class Decay { none, constant, head, channel };

const char* name_of(Decay decay) {
  constexpr const char* names[] = {"no decay", "constant", "per head", "per channel"};
  return names[static_cast<int>(decay)];
}

/// Heads of queries and values, key and value dimensions.
struct Heads {
  int64_t H, HV, K, V;
  std::string name() const {
    std::string text = "H " + std::to_string(H);
    if (HV != H) text += " HV " + std::to_string(HV);
    return text + " K " + std::to_string(K) + " V " + std::to_string(V);
  }
};

/// Constant decays are RetNet's; the others are as a gate makes them. Per head and constant ones are float32, as the layers have them.
Tensor decays(Values& values, Decay decay, const Heads& heads, DType channel_dtype) {
  switch (decay) {
    case Decay::constant:
      return values.f32({heads.HV}, -0.03, -0.0005);
    case Decay::head:
      return values.f32({N, heads.HV}, -0.2, 0);
    case Decay::channel:
      return values.uniform({N, heads.HV, heads.K}, -0.2, 0, channel_dtype);
    default:
      return {};
  }
}

std::string shape_of(const Heads& heads, Decay decay, DType channel_dtype, const Split& split) {
  const std::string dtype = decay == Decay::channel && channel_dtype == DType::f32 ? " (f32 decay)" : "";
  return heads.name() + ", " + name_of(decay) + dtype + ", " + split.name;
}

void add_linear_attention(std::vector<GpuCase>& cases, const Heads& heads, Decay decay, DType dtype, const Split& split) {
  cases.push_back(
      {"gated_linear_attention", shape_of(heads, decay, dtype, split), [=](Context& ctx) {
         Values values(ctx);
         const Shape keys = {N, heads.H, heads.K}, shape = {N, heads.H, heads.V};
         const double unit = 1 / std::sqrt(static_cast<double>(heads.K));
         return make_run<GatedLinearAttention>(
             ctx,
             {values.uniform(keys, -unit, unit), values.uniform(keys, -unit, unit), values.uniform(shape), decays(values, decay, heads, dtype), {}},
             {.seqs = split.seqs, .scale = {}}, 4.0 * N * heads.H * heads.K * heads.V);
       }});
}

void add_delta_rule(std::vector<GpuCase>& cases, const Heads& heads, Decay decay, DType dtype, const Split& split) {
  cases.push_back({"gated_delta_rule", shape_of(heads, decay, dtype, split), [=](Context& ctx) {
                     Values values(ctx);
                     const Shape keys = {N, heads.H, heads.K}, shape = {N, heads.HV, heads.V};
                     return make_run<GatedDeltaRule>(ctx,
                                                     {values.uniform(keys),
                                                      values.uniform(keys),
                                                      values.uniform(shape),
                                                      values.f32({N, heads.HV}, 0, 1),
                                                      decays(values, decay, heads, dtype),
                                                      {}},
                                                     {.seqs = split.seqs, .scale = {}, .qk_l2norm = true}, 6.0 * N * heads.HV * heads.K * heads.V);
                   }});
}

void add_linear_recurrence(std::vector<GpuCase>& cases, int64_t D, DType dtype, const Split& split) {
  const std::string shape = "D " + std::to_string(D) + (dtype == DType::f32 ? " (f32 decay), " : ", ") + split.name;
  cases.push_back({"linear_recurrence", shape, [=](Context& ctx) {
                     Values values(ctx);
                     return make_run<LinearRecurrence>(ctx, {values.uniform({N, D}), values.uniform({N, D}, -0.2, 0, dtype), {}},
                                                       {.seqs = split.seqs}, 3.0 * N * D);
                   }});
}

/// Keys seen by all queries of a causal attention with a window (0: none).
double num_pairs(const Sequences& seqs, int64_t window) {
  double sum = 0;
  for (int64_t s = 0; s < seqs.count(); ++s) {
    const auto length = static_cast<double>(seqs.length(s)), reach = window ? std::min<double>(static_cast<double>(window), length) : length;
    sum += reach * (reach + 1) / 2 + (length - reach) * reach;
  }
  return sum;
}

struct AttentionShape {
  int64_t H, HK, D, window;
};

void add_attention(std::vector<GpuCase>& cases, const AttentionShape& a, const Split& split) {
  std::string shape = "H " + std::to_string(a.H);
  if (a.HK != a.H) shape += " HK " + std::to_string(a.HK);
  shape += " D " + std::to_string(a.D);
  if (a.window) shape += " window " + std::to_string(a.window);
  cases.push_back({"attention", shape + ", " + split.name, [=](Context& ctx) {
                     Values values(ctx);
                     const double flops = 4.0 * static_cast<double>(a.D * a.H) * num_pairs(split.seqs, a.window);
                     return make_run<Attention>(ctx, {values.uniform({N, a.H, a.D}), values.uniform({N, a.HK, a.D}), values.uniform({N, a.HK, a.D})},
                                                {.q_seqs = split.seqs, .window = a.window}, flops, 2.5 * flops);
                   }});
}

}  // namespace

std::vector<Split> token_splits() {
  return {{"16x2048", Sequences::dense(16, 2048)},
          {"4x8192", Sequences::dense(4, 8192)},
          {"1x32768", Sequences::single(N)},
          {"mixed", Sequences::of_lengths({1, 8000, 2, 63, 2048, 3, 64, 65, 5, 4096, 100, 129, 11131, 255, 17, 512, 777, 1000, 1500, 3000})}};
}

std::vector<GpuCase> recurrence_cases() {
  std::vector<GpuCase> cases;
  const std::vector<Split> splits = token_splits();
  const auto for_splits = [&](auto add, auto... arguments) {
    for (const Split& split : splits) add(cases, arguments..., split);
  };
  for (int64_t D : {1024, 2048}) for_splits(add_linear_recurrence, D, DType::bf16);
  for_splits(add_linear_recurrence, int64_t{2048}, DType::f32);
  const Heads retnet{8, 8, 256, 512}, half{4, 4, 256, 512}, hgrn2{16, 16, 128, 128}, gla{4, 4, 128, 256};
  for_splits(add_linear_attention, hgrn2, Decay::none, DType::bf16);
  for (const Heads& heads : {retnet, half}) for_splits(add_linear_attention, heads, Decay::constant, DType::bf16);
  for (const Heads& heads : {hgrn2, half, gla}) for_splits(add_linear_attention, heads, Decay::channel, DType::bf16);
  for_splits(add_linear_attention, hgrn2, Decay::channel, DType::f32);
  for (int64_t H : {16, 32})
    for (int64_t D : {64, 128}) for_splits(add_linear_attention, Heads{H, H, D, D}, Decay::head, DType::bf16);
  const Heads delta{16, 16, 128, 128}, wide{8, 8, 256, 256}, gdn{6, 6, 256, 512}, shared{8, 16, 128, 128};
  for (Decay decay : {Decay::none, Decay::head, Decay::channel}) for_splits(add_delta_rule, delta, decay, DType::bf16);
  for (Decay decay : {Decay::none, Decay::head, Decay::channel}) for_splits(add_delta_rule, wide, decay, DType::bf16);
  for (const Heads& heads : {gdn, shared})
    for (Decay decay : {Decay::head, Decay::channel}) for_splits(add_delta_rule, heads, decay, DType::bf16);
  for_splits(add_delta_rule, Heads{16, 16, 64, 64}, Decay::channel, DType::bf16);
  return cases;
}

std::vector<GpuCase> attention_cases() {
  std::vector<GpuCase> cases;
  for (const AttentionShape& shape : {AttentionShape{16, 16, 128, 0}, {32, 32, 64, 0}, {8, 8, 256, 0}, {16, 4, 128, 0}, {16, 16, 128, 1024}})
    for (const Split& split : token_splits()) add_attention(cases, shape, split);
  return cases;
}

std::vector<GpuCase> gpu_cases() {
  std::vector<GpuCase> cases;
  for (auto list : {ceiling_cases, row_cases, recurrence_cases, attention_cases, step_cases})
    for (GpuCase& c : list()) cases.push_back(std::move(c));
  return cases;
}

}  // namespace braid::cli
