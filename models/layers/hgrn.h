// HGRN: a gated linear recurrence per channel, whose forget gate has a lower bound that rises with depth.
//
//   a = sigmoid(f), or lb + (1 − lb) sigmoid(f) after layer 0;  h_t = a_t h_{t−1} + (1 − a_t) silu(i_t);  y = o_proj(rms_norm(h) w silu(g))
//
// Source: Qin et al., "Hierarchically Gated Recurrent Neural Network for Sequence Modeling", NeurIPS 2023.
#pragma once
#include "models/layers/mixer_output.h"
#include "models/layers/projection.h"

namespace braid {

/// `name`.{i,f,g,o}_proj.weight, `name`.g_norm.weight [D]; with use_short_conv `name`.{i,f}_conv1d.weight.
class HgrnMixer final : public Mixer {
 public:
  HgrnMixer(const ModelConfig& config, int64_t layer_idx, const std::string& name, const Parameter& lower_bounds);
  Tensor forward(Context& ctx, const MixerInput& in) const override;
  MixerCost cost() const override;

 private:
  int64_t width_, layer_idx_;
  const Parameter* lower_bounds_;  // null: none
  Projection i_, f_;
  MixerOutput output_;
};

/// lb [D] of a layer from the model's `lower_bounds` [L, D]; undefined for layer 0 and without bounds.
Tensor lower_bound_of(Context& ctx, const Parameter* lower_bounds, int64_t layer_idx);

}  // namespace braid
