// GLA: linear attention whose decay is a low-rank, input-dependent gate per key channel.
//
//   log_decay = max(logsigmoid(W1 W0 x + b) / gate_logit_normalizer, clamp_min)
//
// Source: Yang et al., "Gated Linear Attention Transformers with Hardware-Efficient Training", ICML 2024.
#pragma once
#include "models/layers/mixer_output.h"
#include "models/layers/projection.h"

namespace braid {

/// `name`.{q,k,v,g,o}_proj.weight, `name`.gk_proj.{0,1}.weight, `name`.gk_proj.1.bias, `name`.g_norm_swish_gate.weight [V] (g_norm without
/// gate or fuse_norm); with use_short_conv `name`.{q,k,v}_conv1d.weight. k, v and the gate may have fewer heads (num_kv_heads).
class GlaMixer final : public Mixer {
 public:
  GlaMixer(const ModelConfig& config, const std::string& name);
  Tensor forward(Context& ctx, const MixerInput& in) const override;
  MixerCost cost() const override;

 private:
  int64_t num_heads_, num_kv_heads_, head_k_dim_, head_v_dim_;
  double normalizer_;
  std::optional<double> clamp_min_;
  Projection q_, k_, v_;
  LinearLayer gate_down_, gate_up_;
  MixerOutput output_;
};

}  // namespace braid
