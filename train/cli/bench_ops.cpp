#include "train/cli/bench_ops.h"

#include <chrono>
#include <cmath>
#include <limits>
#include <set>

#include "ops/attention.h"
#include "ops/embedding.h"
#include "ops/gated_rms_norm.h"
#include "ops/l2_norm.h"
#include "ops/linear.h"
#include "ops/linear_cross_entropy.h"
#include "ops/recurrence/gated_delta_rule.h"
#include "ops/recurrence/gated_linear_attention.h"
#include "ops/recurrence/linear_recurrence.h"
#include "ops/rms_norm.h"
#include "ops/rotary.h"
#include "ops/short_conv.h"
#include "ops/swiglu.h"

namespace braid::cli {
namespace {

constexpr int64_t kTokens = 2048, kWidth = 512, kHeads = 8, kHeadDim = 64, kVocab = 4096;

class Values {
 public:
  explicit Values(Context& ctx) : ctx_(ctx), random_(11) {}
  Tensor uniform(const Shape& shape, double low = -1, double high = 1) {
    std::vector<float> values(shape.numel());
    for (float& value : values) value = static_cast<float>(random_.uniform(low, high));
    return from_vector<float>(ctx_, values, shape);
  }
  Tensor indices(int64_t count, int64_t bound) {
    std::vector<int64_t> values(count);
    for (int64_t& value : values) value = static_cast<int64_t>(random_.below(bound));
    return from_vector<int64_t>(ctx_, values, {count});
  }

 private:
  Context& ctx_;
  Random random_;
};

template <class Record>
double bytes_of(const Record& record) {
  double sum = 0;
  for (const Tensor* tensor : tensors_of(record))
    if (tensor->defined()) sum += static_cast<double>(tensor->nbytes());
  return sum;
}

template <Differentiable Op>
void run_both(Context& ctx, const typename Op::Inputs& in, const typename Op::Attrs& attrs, const Tensor& seed) {
  Tape tape;
  WithTape recording(ctx, &tape);
  typename Op::Inputs leaves = in;
  for (Tensor* tensor : tensors_of(leaves))
    if (tensor->defined() && is_floating(tensor->dtype())) *tensor = tape.leaf(*tensor);
  const typename Op::Outputs out = apply<Op>(ctx, leaves, attrs);
  tape.backward(ctx, *tensors_of(out)[0], seed);
}

/// `flops`: of forward; backward does twice as many.
template <Differentiable Op>
BenchCase make_case(Context& ctx, std::string shape, const typename Op::Inputs& in, const typename Op::Attrs& attrs, double flops) {
  const typename Op::Outputs out = apply<Op>(ctx, in, attrs);
  const Tensor first = *tensors_of(out)[0];
  const Tensor seed = from_vector<float>(ctx, std::vector<float>(first.numel(), 0.5f), first.shape());
  BenchCase result;
  result.op = Op::name;
  result.shape = std::move(shape);
  result.num_tokens = kTokens;
  result.forward_bytes = bytes_of(in) + bytes_of(out);
  result.backward_bytes = 2 * bytes_of(in) + static_cast<double>(first.nbytes());
  result.forward_flops = flops;
  result.backward_flops = 2 * flops;
  result.result_bytes = static_cast<int64_t>(bytes_of(out));
  for (const Tensor* tensor : tensors_of(in))
    if (tensor->defined() && is_floating(tensor->dtype())) result.result_bytes += tensor->nbytes();
  result.forward = [=](Context& c) { apply<Op>(c, in, attrs); };
  result.forward_backward = [=](Context& c) { run_both<Op>(c, in, attrs, seed); };
  return result;
}

/// Of the table only the rows of the tokens are read; its gradient has them all.
void add_embedding(Context& ctx, Values& values, std::vector<BenchCase>& cases) {
  const Tensor tokens = values.indices(kTokens, kVocab);
  const std::vector<int64_t> list = to_vector<int64_t>(ctx, tokens);
  const auto row = static_cast<double>(kWidth * sizeof(float)), num_rows = static_cast<double>(std::set<int64_t>(list.begin(), list.end()).size());
  BenchCase result = make_case<Embedding>(ctx, "[4096, 512], 2048 tokens", {tokens, values.uniform({kVocab, kWidth})}, {}, 0);
  result.forward_bytes = static_cast<double>(tokens.nbytes()) + row * (num_rows + kTokens);
  result.backward_bytes = static_cast<double>(tokens.nbytes()) + row * (kTokens + kVocab);
  cases.push_back(std::move(result));
}

void add_dense(Context& ctx, Values& values, std::vector<BenchCase>& cases) {
  const Tensor x = values.uniform({kTokens, kWidth}), gate = values.uniform({kTokens, kWidth}), weight = values.uniform({kWidth});
  const double n = kTokens * kWidth;
  cases.push_back(make_case<Linear>(ctx, "[2048, 512] x [512, 512]", {x, values.uniform({kWidth, kWidth}), {}}, {}, 2 * n * kWidth));
  cases.push_back(make_case<LinearCrossEntropy>(ctx, "[2048, 512], vocabulary 4096",
                                                {x, values.uniform({kVocab, kWidth}), values.indices(kTokens, kVocab)}, {}, 2 * n * kVocab));
  add_embedding(ctx, values, cases);
  cases.push_back(make_case<RmsNorm>(ctx, "[2048, 512]", {x, weight, {}}, {}, 4 * n));
  cases.push_back(make_case<GatedRmsNorm>(ctx, "[2048, 512]", {x, gate, weight}, {}, 8 * n));
  cases.push_back(make_case<L2Norm>(ctx, "[2048, 512]", {x}, {}, 4 * n));
  cases.push_back(make_case<SwiGlu>(ctx, "[2048, 512]", {gate, x}, {}, 5 * n));
  cases.push_back(make_case<ShortConv>(ctx, "[2048, 512], width 4, silu", {x, values.uniform({kWidth, 4}), {}},
                                       {.seqs = Sequences::single(kTokens), .activation = ConvActivation::silu}, 12 * n));
}

double linear_attention_flops() { return 4.0 * kTokens * kHeads * kHeadDim * kHeadDim; }

struct HeadInputs {
  Tensor q, k, v, beta, head_decay, channel_decay, constant_decay;
};

HeadInputs head_inputs(Values& values) {
  const Shape heads = {kTokens, kHeads, kHeadDim}, gates = {kTokens, kHeads};
  const double unit = 1 / std::sqrt(double{kHeadDim});  // keys of norm about one, as the delta rule wants them
  return {values.uniform(heads, -unit, unit), values.uniform(heads, -unit, unit), values.uniform(heads),
          values.uniform(gates, 0, 1),        values.uniform(gates, -0.1, 0),     values.uniform(heads, -0.1, 0),
          values.uniform({kHeads}, -0.1, 0)};
}

BenchCase attention_like(Context& ctx, const HeadInputs& in, const Tensor& decay, const char* shape, Form form) {
  return make_case<GatedLinearAttention>(ctx, shape, {in.q, in.k, in.v, decay, {}}, {.seqs = Sequences::single(kTokens), .scale = {}, .form = form},
                                         linear_attention_flops());
}

BenchCase delta_like(Context& ctx, const HeadInputs& in, const Tensor& decay, const char* shape, Form form) {
  return make_case<GatedDeltaRule>(ctx, shape, {in.q, in.k, in.v, in.beta, decay, {}},
                                   {.seqs = Sequences::single(kTokens), .scale = {}, .qk_l2norm = true, .form = form},
                                   1.5 * linear_attention_flops());
}

}  // namespace

std::vector<BenchCase> operator_cases(Context& ctx) {
  Values values(ctx);
  std::vector<BenchCase> cases;
  add_dense(ctx, values, cases);
  const HeadInputs in = head_inputs(values);
  const Sequences seqs = Sequences::single(kTokens);
  cases.push_back(make_case<Rotary>(ctx, "[2048, 8, 64]", {in.q}, {.seqs = seqs}, 3.0 * kTokens * kWidth));
  cases.push_back(
      make_case<Attention>(ctx, "[2048, 8, 64], causal", {in.q, in.k, in.v}, {.q_seqs = seqs, .k_seqs = seqs}, 2.0 * kTokens * kTokens * kWidth));
  cases.push_back(make_case<LinearRecurrence>(ctx, "[2048, 512]", {in.q.view({kTokens, kWidth}), in.channel_decay.view({kTokens, kWidth}), {}},
                                              {.seqs = seqs}, 3.0 * kTokens * kWidth));
  cases.push_back(attention_like(ctx, in, in.constant_decay, "[2048, 8, 64], decay per head, constant", Form::automatic));
  cases.push_back(attention_like(ctx, in, in.channel_decay, "[2048, 8, 64], decay per channel", Form::automatic));
  cases.push_back(delta_like(ctx, in, {}, "[2048, 8, 64], no decay", Form::automatic));
  cases.push_back(delta_like(ctx, in, in.head_decay, "[2048, 8, 64], decay per head", Form::automatic));
  return cases;
}

std::vector<FormPair> recurrence_pairs(Context& ctx) {
  Values values(ctx);
  const HeadInputs in = head_inputs(values);
  std::vector<FormPair> pairs;
  const auto add = [&](const char* decay_name, const Tensor& decay, auto make, const char* op) {
    pairs.push_back({op, decay_name, make(ctx, in, decay, decay_name, Form::chunked), make(ctx, in, decay, decay_name, Form::token)});
  };
  add("none", {}, attention_like, "gated_linear_attention");
  add("per head, constant", in.constant_decay, attention_like, "gated_linear_attention");
  add("per head", in.head_decay, attention_like, "gated_linear_attention");
  add("per channel", in.channel_decay, attention_like, "gated_linear_attention");
  add("none", {}, delta_like, "gated_delta_rule");
  add("per head", in.head_decay, delta_like, "gated_delta_rule");
  add("per channel", in.channel_decay, delta_like, "gated_delta_rule");
  return pairs;
}

int64_t peak_bytes_above(const std::function<void()>& body) {
  const int64_t before = host_memory().used_bytes;
  reset_host_peak();
  body();
  return host_memory().peak_bytes - before;
}

double time_ms(const std::function<void()>& body, double budget_ms) {
  using Clock = std::chrono::steady_clock;
  const auto once = [&] {
    const auto start = Clock::now();
    body();
    return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
  };
  double spent = once(), best = std::numeric_limits<double>::infinity();
  for (int i = 0; i < 2 || (spent < budget_ms && i < 1000); ++i) {
    const double ms = once();
    spent += ms;
    best = std::min(best, ms);
  }
  return best;
}

}  // namespace braid::cli
