#include "models/layers/delta_net.h"

#include "models/layers/recur.h"
#include "ops/elementwise.h"
#include "ops/recurrence/gated_delta_rule.h"

namespace braid {
namespace {

ProjectionActivation activation_of(const ModelConfig& config) {
  return config.qk_activation == "silu" ? ProjectionActivation::always : ProjectionActivation::never;
}

}  // namespace

Tensor writing_strength(Context& ctx, const Tensor& sigmoid_of_b, bool allow_neg_eigval) {
  return allow_neg_eigval ? apply<Scale>(ctx, {sigmoid_of_b}, Scale(2)).y : sigmoid_of_b;
}

DeltaNetMixer::DeltaNetMixer(const ModelConfig& config, const std::string& name)
    : num_heads_(config.num_heads),
      head_k_dim_(config.key_dim() / config.num_heads),
      head_v_dim_(config.value_dim() / config.num_heads),
      allow_neg_eigval_(config.allow_neg_eigval),
      q_(config, name, "q", config.key_dim(), activation_of(config)),
      k_(config, name, "k", config.key_dim(), activation_of(config)),
      v_(config, name, "v", config.value_dim(), ProjectionActivation::always),
      output_(name, {.hidden_size = config.hidden_size,
                     .num_heads = num_heads_,
                     .head_dim = head_v_dim_,
                     .eps = config.norm_eps,
                     .norm_name = "o_norm",
                     .gated = config.use_gate}) {
  adopt(q_);
  adopt(k_);
  adopt(v_);
  if (config.use_beta) adopt(b_.emplace(name + ".b_proj", config.hidden_size, num_heads_));
  adopt(output_);
}

Tensor DeltaNetMixer::forward(Context& ctx, const MixerInput& in) const {
  const int64_t N = in.x.size(0);
  const Shape keys = {N, num_heads_, head_k_dim_}, values = {N, num_heads_, head_v_dim_};
  const auto [q, k, v, b, gate] = project_each(ctx, in,
                                               {q_.map(ctx, in, 0, head_k_dim_), k_.map(ctx, in, 1, head_k_dim_), v_.map(ctx, in, 2),
                                                b_ ? b_->map(ctx, MapActivation::sigmoid) : ProjectionMap{}, output_.gate_early(ctx, in.x)});
  Tensor beta;
  if (b_) {
    beta = writing_strength(ctx, b, allow_neg_eigval_);
  } else {
    // 2 · sigmoid(0) is 1 to the bit, made on the device where the values are needed.
    const Tensor zeros = Tensor::zeros(ctx, {N, num_heads_}, accumulator(q.dtype()));
    beta = apply<Scale>(ctx, {writing_strength(ctx, apply<Sigmoid>(ctx, {zeros}).y, allow_neg_eigval_)}, Scale(2)).y;
  }
  const Tensor o = recur<GatedDeltaRule>(ctx, in, {q.view(keys), k.view(keys), v.view(values), beta, {}, {}},
                                         {.seqs = in.seqs, .scale = {}, .qk_l2norm = !q_.normalizes(in)});
  return output_(ctx, o, in.x, gate);
}

MixerCost DeltaNetMixer::cost() const {
  const int64_t state = num_heads_ * head_k_dim_ * head_v_dim_;
  MixerCost cost{.state_elements = state, .recurrence_flops = 6.0 * static_cast<double>(state)};
  add_conv_cost(cost, q_, k_, v_);
  return cost;
}

}  // namespace braid
