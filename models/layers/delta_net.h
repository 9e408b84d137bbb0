// DeltaNet: the delta rule with L2-normalised keys and queries and a learned writing strength.
//
// Source: Yang et al., "Parallelizing Linear Transformers with the Delta Rule over Sequence Length", NeurIPS 2024.
#pragma once
#include "models/layers/mixer_output.h"
#include "models/layers/projection.h"

namespace braid {

/// `name`.{q,k,v,b,o}_proj.weight (b with use_beta), `name`.o_norm.weight [V]; with use_short_conv `name`.{q,k,v}_conv1d.weight; with
/// use_gate `name`.g_proj.weight.
class DeltaNetMixer final : public Mixer {
 public:
  DeltaNetMixer(const ModelConfig& config, const std::string& name);
  Tensor forward(Context& ctx, const MixerInput& in) const override;
  MixerCost cost() const override;

 private:
  int64_t num_heads_, head_k_dim_, head_v_dim_;
  bool allow_neg_eigval_;
  Projection q_, k_, v_;
  std::optional<LinearLayer> b_;  // absent: beta is 1
  MixerOutput output_;
};

/// beta: sigmoid(b), or twice that, so that the transition's eigenvalues reach down to −1.
Tensor writing_strength(Context& ctx, const Tensor& sigmoid_of_b, bool allow_neg_eigval);

}  // namespace braid
