#include "models/layers/gated_deltanet.h"

#include "models/layers/delta_net.h"
#include "models/layers/recur.h"
#include "ops/gates.h"
#include "ops/recurrence/gated_delta_rule.h"

namespace braid {

GatedDeltaNetMixer::GatedDeltaNetMixer(const ModelConfig& config, const std::string& name)
    : num_heads_(config.num_heads),
      num_v_heads_(config.num_v_heads),
      head_k_dim_(config.head_dim),
      head_v_dim_(config.value_dim() / config.num_v_heads),
      allow_neg_eigval_(config.allow_neg_eigval),
      q_(config, name, "q", config.key_dim(), ProjectionActivation::always),
      k_(config, name, "k", config.key_dim(), ProjectionActivation::always),
      v_(config, name, "v", config.value_dim(), ProjectionActivation::always),
      a_(name + ".a_proj", config.hidden_size, num_v_heads_),
      b_(name + ".b_proj", config.hidden_size, num_v_heads_),
      output_(name, {.hidden_size = config.hidden_size,
                     .num_heads = num_v_heads_,
                     .head_dim = head_v_dim_,
                     .eps = config.norm_eps,
                     .norm_name = "o_norm",
                     .gated = config.use_gate}) {
  adopt(q_);
  adopt(k_);
  adopt(v_);
  adopt(a_);
  adopt(b_);
  declare(A_log_, name + ".A_log", {num_v_heads_}, Init::a_log);
  declare(dt_bias_, name + ".dt_bias", {num_v_heads_}, Init::dt_bias);
  adopt(output_);
}

Tensor GatedDeltaNetMixer::forward(Context& ctx, const MixerInput& in) const {
  const int64_t N = in.x.size(0);
  const Shape keys = {N, num_heads_, head_k_dim_}, values = {N, num_v_heads_, head_v_dim_};
  const auto [q, k, v, b, a, gate] = project_each(ctx, in,
                                                  {q_.map(ctx, in, 0, head_k_dim_), k_.map(ctx, in, 1, head_k_dim_), v_.map(ctx, in, 2),
                                                   b_.map(ctx, MapActivation::sigmoid), a_.map(ctx), output_.gate_early(ctx, in.x)});
  const Tensor beta = writing_strength(ctx, b, allow_neg_eigval_);
  const Tensor log_decay = apply<GdnGate>(ctx, {a, A_log_.use(ctx), dt_bias_.use(ctx)}).log_decay;
  const Tensor o = recur<GatedDeltaRule>(ctx, in, {q.view(keys), k.view(keys), v.view(values), beta, log_decay, {}},
                                         {.seqs = in.seqs, .scale = {}, .qk_l2norm = !q_.normalizes(in)});
  return output_(ctx, o, in.x, gate);
}

MixerCost GatedDeltaNetMixer::cost() const {
  const int64_t state = num_v_heads_ * head_k_dim_ * head_v_dim_;
  MixerCost cost{.state_elements = state, .recurrence_flops = 7.0 * static_cast<double>(state)};
  add_conv_cost(cost, q_, k_, v_);
  return cost;
}

}  // namespace braid
