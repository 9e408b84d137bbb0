#include "models/layers/hgrn.h"

#include "models/layers/recur.h"
#include "ops/gates.h"
#include "ops/recurrence/linear_recurrence.h"
#include "ops/swiglu.h"

namespace braid {

Tensor lower_bound_of(Context& ctx, const Parameter* lower_bounds, int64_t layer_idx) {
  if (!lower_bounds || layer_idx == 0) return {};
  return apply<LowerBound>(ctx, {lower_bounds->use(ctx)}, {layer_idx}).bound;
}

HgrnMixer::HgrnMixer(const ModelConfig& config, int64_t layer_idx, const std::string& name, const Parameter& lower_bounds)
    : width_(config.value_dim()),
      layer_idx_(layer_idx),
      lower_bounds_(config.use_lower_bound ? &lower_bounds : nullptr),
      i_(config, name, "i", width_, ProjectionActivation::never),
      f_(config, name, "f", width_, ProjectionActivation::never),
      output_(name, {.hidden_size = config.hidden_size, .head_dim = width_, .eps = config.norm_eps, .norm_name = "g_norm"}) {
  adopt(i_);
  adopt(f_);
  adopt(output_);
}

Tensor HgrnMixer::forward(Context& ctx, const MixerInput& in) const {
  const auto [i, f, output_gate] = project_each(ctx, in, {i_.map(ctx, in, 0), f_.map(ctx, in, 1), output_.gate_early(ctx, in.x)});
  const auto gate = apply<HgrnGate>(ctx, {f, lower_bound_of(ctx, lower_bounds_, layer_idx_)});
  const Tensor x = apply<SwiGlu>(ctx, {i, gate.input_gate}).y;
  const Tensor h = recur<LinearRecurrence>(ctx, in, {x, gate.log_decay, {}}, {.seqs = in.seqs});
  return output_(ctx, h, in.x, output_gate);
}

MixerCost HgrnMixer::cost() const {
  MixerCost cost{.state_elements = width_, .recurrence_flops = 2.0 * static_cast<double>(width_)};
  add_conv_cost(cost, i_, f_);
  return cost;
}

}  // namespace braid
