#include "models/layers/retnet.h"

#include <cmath>

#include "models/layers/recur.h"
#include "ops/recurrence/gated_linear_attention.h"
#include "ops/repeat_heads.h"
#include "ops/rotary.h"

namespace braid {
namespace {

constexpr double kTheta = 10000;

Tensor retention_log_decay(Context& ctx, int64_t num_heads, DType dtype) {
  std::vector<double> log_decay(num_heads);
  for (int64_t h = 0; h < num_heads; ++h) log_decay[h] = std::log1p(-std::exp2(-5.0 - static_cast<double>(h)));
  return converted(ctx, from_vector(ctx, log_decay, {num_heads}), dtype);
}

}  // namespace

MixerOutput::Options linear_attention_output(const ModelConfig& config) {
  return {.hidden_size = config.hidden_size,
          .num_heads = config.num_heads,
          .head_dim = config.value_dim() / config.num_heads,
          .eps = config.norm_eps,
          .norm_name = config.use_output_gate && config.fuse_norm ? "g_norm_swish_gate" : "g_norm",
          .gated = config.use_output_gate};
}

RetNetMixer::RetNetMixer(const ModelConfig& config, const std::string& name)
    : num_heads_(config.num_heads),
      num_kv_heads_(config.num_kv_heads),
      head_k_dim_(config.key_dim() / config.num_heads),
      head_v_dim_(config.value_dim() / config.num_heads),
      q_(config, name, "q", config.key_dim(), ProjectionActivation::with_conv),
      k_(config, name, "k", num_kv_heads_ * head_k_dim_, ProjectionActivation::with_conv),
      v_(config, name, "v", num_kv_heads_ * head_v_dim_, ProjectionActivation::with_conv),
      output_(name, linear_attention_output(config)) {
  adopt(q_);
  adopt(k_);
  adopt(v_);
  adopt(output_);
}

Tensor RetNetMixer::log_decay_for(Context& ctx, DType dtype) const {
  if (!log_decay_ || log_decay_.dtype() != dtype || log_decay_.device() != ctx.device() || log_decay_stream_.native() != ctx.stream().native()) {
    log_decay_ = retention_log_decay(ctx, num_heads_, dtype);
    log_decay_stream_ = ctx.stream();
  }
  return log_decay_;
}

Tensor RetNetMixer::forward(Context& ctx, const MixerInput& in) const {
  const int64_t N = in.x.size(0), groups = num_heads_ / num_kv_heads_;
  Rotary::Attrs positions{in.seqs, kTheta, {}};
  if (in.device_positions) positions.device_offsets = in.device_positions;
  else if (in.positions) positions.offsets = *in.positions;
  const auto [to_q, to_k, to_v, gate] =
      project_each(ctx, in, {q_.map(ctx, in, 0), k_.map(ctx, in, 1), v_.map(ctx, in, 2), output_.gate_early(ctx, in.x)});
  const Tensor q = apply<Rotary>(ctx, {to_q.view({N, num_heads_, head_k_dim_})}, positions).y;
  Tensor k = apply<Rotary>(ctx, {to_k.view({N, num_kv_heads_, head_k_dim_})}, positions).y;
  Tensor v = to_v.view({N, num_kv_heads_, head_v_dim_});
  if (groups > 1) {
    k = apply<RepeatHeads>(ctx, {k}, {groups}).y;
    v = apply<RepeatHeads>(ctx, {v}, {groups}).y;
  }
  const Tensor log_decay = log_decay_for(ctx, accumulator(q.dtype()));
  const Tensor o = recur<GatedLinearAttention>(ctx, in, {q, k, v, log_decay, {}}, {.seqs = in.seqs, .scale = {}});
  return output_(ctx, o, in.x, gate);
}

MixerCost RetNetMixer::cost() const {
  const int64_t state = num_heads_ * head_k_dim_ * head_v_dim_;
  MixerCost cost{.state_elements = state, .recurrence_flops = 5.0 * static_cast<double>(state)};
  add_conv_cost(cost, q_, k_, v_);
  return cost;
}

}  // namespace braid
