// RetNet: linear attention with one constant decay per head, log(1 − 2^(−5−h)), and rotary positions on q and k.
//
// Source: Sun et al., "Retentive Network: A Successor to Transformer for Large Language Models", 2023.
#pragma once
#include "models/layers/mixer_output.h"
#include "models/layers/projection.h"

namespace braid {

/// `name`.{q,k,v,g,o}_proj.weight, `name`.g_norm_swish_gate.weight [V] (g_norm without gate or fuse_norm); with use_short_conv
/// `name`.{q,k,v}_conv1d.weight. k and v may have fewer heads (num_kv_heads).
class RetNetMixer final : public Mixer {
 public:
  RetNetMixer(const ModelConfig& config, const std::string& name);
  Tensor forward(Context& ctx, const MixerInput& in) const override;
  MixerCost cost() const override;

 private:
  /// Made once where it is used: every layer of every step would upload it otherwise.
  Tensor log_decay_for(Context& ctx, DType dtype) const;

  int64_t num_heads_, num_kv_heads_, head_k_dim_, head_v_dim_;
  Projection q_, k_, v_;
  MixerOutput output_;
  mutable Tensor log_decay_;  // [H]
  mutable Stream log_decay_stream_;
};

/// The output of RetNet and GLA, which share it: names and all.
MixerOutput::Options linear_attention_output(const ModelConfig& config);

}  // namespace braid
