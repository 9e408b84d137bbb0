#include "models/layers/gla.h"

#include "models/layers/recur.h"
#include "models/layers/retnet.h"
#include "ops/gates.h"
#include "ops/recurrence/gated_linear_attention.h"
#include "ops/repeat_heads.h"

namespace braid {

GlaMixer::GlaMixer(const ModelConfig& config, const std::string& name)
    : num_heads_(config.num_heads),
      num_kv_heads_(config.num_kv_heads),
      head_k_dim_(config.key_dim() / config.num_heads),
      head_v_dim_(config.value_dim() / config.num_heads),
      normalizer_(config.gate_logit_normalizer),
      clamp_min_(config.clamp_min),
      q_(config, name, "q", config.key_dim(), ProjectionActivation::with_conv),
      k_(config, name, "k", num_kv_heads_ * head_k_dim_, ProjectionActivation::with_conv),
      v_(config, name, "v", num_kv_heads_ * head_v_dim_, ProjectionActivation::with_conv),
      gate_down_(name + ".gk_proj.0", config.hidden_size, config.gate_low_rank_dim),
      gate_up_(name + ".gk_proj.1", config.gate_low_rank_dim, num_kv_heads_ * head_k_dim_, true),
      output_(name, linear_attention_output(config)) {
  adopt(q_);
  adopt(k_);
  adopt(v_);
  adopt(gate_down_);
  adopt(gate_up_);
  adopt(output_);
}

Tensor GlaMixer::forward(Context& ctx, const MixerInput& in) const {
  const int64_t N = in.x.size(0), groups = num_heads_ / num_kv_heads_;
  const auto [to_q, to_k, to_v, narrow, gate] =
      project_each(ctx, in, {q_.map(ctx, in, 0), k_.map(ctx, in, 1), v_.map(ctx, in, 2), gate_down_.map(ctx), output_.gate_early(ctx, in.x)});
  const Tensor q = to_q.view({N, num_heads_, head_k_dim_});
  Tensor k = to_k.view({N, num_kv_heads_, head_k_dim_}), v = to_v.view({N, num_kv_heads_, head_v_dim_});
  Tensor log_decay = apply<GlaGate>(ctx, {gate_up_(ctx, narrow)}, {normalizer_, clamp_min_}).log_decay.view({N, num_kv_heads_, head_k_dim_});
  if (groups > 1) {
    k = apply<RepeatHeads>(ctx, {k}, {groups}).y;
    v = apply<RepeatHeads>(ctx, {v}, {groups}).y;
    log_decay = apply<RepeatHeads>(ctx, {log_decay}, {groups}).y;
  }
  const Tensor o = recur<GatedLinearAttention>(ctx, in, {q, k, v, log_decay, {}}, {.seqs = in.seqs, .scale = {}});
  return output_(ctx, o, in.x, gate);
}

MixerCost GlaMixer::cost() const {
  const int64_t state = num_heads_ * head_k_dim_ * head_v_dim_;
  MixerCost cost{.state_elements = state, .recurrence_flops = 5.0 * static_cast<double>(state)};
  add_conv_cost(cost, q_, k_, v_);
  return cost;
}

}  // namespace braid
