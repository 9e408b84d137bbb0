// HGRN2: HGRN with its state expanded to a matrix per head, the forget gate doubling as the key.
//
//   q = silu(q);  a as in HGRN;  k = 1 − a;  S_t = diag(a_t) S_{t−1} + k_t i_t^T;  o = K^-1/2 S_t^T q_t;  y = o_proj(rms_norm(o) w)
//
// Source: Qin et al., "HGRN2: Gated Linear RNNs with State Expansion", COLM 2024.
#pragma once
#include "models/layers/mixer_output.h"
#include "models/layers/projection.h"

namespace braid {

/// `name`.{q,f,i,o}_proj.weight, `name`.g_norm.weight [hidden_size]; with use_short_conv `name`.{q,f,i}_conv1d.weight.
class Hgrn2Mixer final : public Mixer {
 public:
  Hgrn2Mixer(const ModelConfig& config, int64_t layer_idx, const std::string& name, const Parameter& lower_bounds);
  Tensor forward(Context& ctx, const MixerInput& in) const override;
  MixerCost cost() const override;

 private:
  int64_t num_heads_, head_k_dim_, head_v_dim_, layer_idx_;
  const Parameter* lower_bounds_;  // null: none
  Projection q_, f_, i_;
  MixerOutput output_;
};

}  // namespace braid
