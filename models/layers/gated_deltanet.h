// Gated DeltaNet: the delta rule on a state that also decays, by one input-dependent factor per head.
//
//   log_decay = −exp(A_log) softplus(a + dt_bias)
//
// Source: Yang, Kautz and Hatamizadeh, "Gated Delta Networks: Improving Mamba2 with Delta Rule", ICLR 2025.
#pragma once
#include "models/layers/mixer_output.h"
#include "models/layers/projection.h"

namespace braid {

/// `name`.{q,k,v,a,b,g,o}_proj.weight (g with use_gate), `name`.A_log [HV], `name`.dt_bias [HV], `name`.o_norm.weight [V]; with
/// use_short_conv `name`.{q,k,v}_conv1d.weight.
class GatedDeltaNetMixer final : public Mixer {
 public:
  GatedDeltaNetMixer(const ModelConfig& config, const std::string& name);
  Tensor forward(Context& ctx, const MixerInput& in) const override;
  MixerCost cost() const override;

 private:
  int64_t num_heads_, num_v_heads_, head_k_dim_, head_v_dim_;
  bool allow_neg_eigval_;
  Projection q_, k_, v_;
  LinearLayer a_, b_;
  Parameter A_log_, dt_bias_;
  MixerOutput output_;
};

}  // namespace braid
