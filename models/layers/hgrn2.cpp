#include "models/layers/hgrn2.h"

#include "models/layers/hgrn.h"
#include "models/layers/recur.h"
#include "ops/elementwise.h"
#include "ops/gates.h"
#include "ops/recurrence/gated_linear_attention.h"

namespace braid {

Hgrn2Mixer::Hgrn2Mixer(const ModelConfig& config, int64_t layer_idx, const std::string& name, const Parameter& lower_bounds)
    : num_heads_(config.num_heads),
      head_k_dim_(config.key_dim() / config.num_heads),
      head_v_dim_(config.value_dim() / config.num_heads),
      layer_idx_(layer_idx),
      lower_bounds_(config.use_lower_bound ? &lower_bounds : nullptr),
      q_(config, name, "q", config.key_dim(), ProjectionActivation::never),
      f_(config, name, "f", config.key_dim(), ProjectionActivation::never),
      i_(config, name, "i", config.value_dim(), ProjectionActivation::never),
      output_(name,
              {.hidden_size = config.hidden_size, .head_dim = config.value_dim(), .eps = config.norm_eps, .norm_name = "g_norm", .gated = false}) {
  adopt(q_);
  adopt(f_);
  adopt(i_);
  adopt(output_);
}

Tensor Hgrn2Mixer::forward(Context& ctx, const MixerInput& in) const {
  const Shape keys = {in.x.size(0), num_heads_, head_k_dim_}, values = {in.x.size(0), num_heads_, head_v_dim_};
  const auto [to_q, f, v] = project_each(ctx, in, {q_.map(ctx, in, 0), f_.map(ctx, in, 1), i_.map(ctx, in, 2)});
  const Tensor q = apply<Silu>(ctx, {to_q}).y;
  const auto gate = apply<HgrnGate>(ctx, {f, lower_bound_of(ctx, lower_bounds_, layer_idx_)});
  const Tensor o = recur<GatedLinearAttention>(ctx, in, {q.view(keys), gate.input_gate.view(keys), v.view(values), gate.log_decay.view(keys), {}},
                                               {.seqs = in.seqs, .scale = {}});
  return output_(ctx, o, in.x);
}

MixerCost Hgrn2Mixer::cost() const {
  const int64_t state = num_heads_ * head_k_dim_ * head_v_dim_;
  MixerCost cost{.state_elements = state, .recurrence_flops = 5.0 * static_cast<double>(state)};
  add_conv_cost(cost, q_, f_, i_);
  return cost;
}

}  // namespace braid
