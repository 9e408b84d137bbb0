// Full attention: causal softmax, grouped queries, rotary positions, optional bias, norm of q and k, and sliding window.
//
// Source: Vaswani et al., "Attention Is All You Need", NeurIPS 2017; Su et al., "RoFormer", 2021; Ainslie et al., "GQA", EMNLP 2023.
#pragma once
#include <optional>

#include "models/layers/linear.h"
#include "models/layers/mixer.h"
#include "models/layers/norm.h"

namespace braid {

/// `name`.{q,k,v,o}_proj.weight (.bias on q, k, v), `name`.{q,k}_norm.weight [head dim].
class AttentionMixer final : public Mixer {
 public:
  AttentionMixer(const ModelConfig& config, const AttentionConfig& attention, const std::string& name);
  Tensor forward(Context& ctx, const MixerInput& in) const override;
  MixerCost cost() const override;

 private:
  Tensor attend(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v, const MixerInput& in) const;
  Tensor attend_to_cache(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v, const MixerInput& in) const;

  AttentionConfig config_;
  int64_t head_dim_;
  LinearLayer q_proj_, k_proj_, v_proj_, o_proj_;
  std::optional<NormLayer> q_norm_, k_norm_;
};

}  // namespace braid
