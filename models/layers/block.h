// One layer of the model: mixer and MLP, each behind a norm and beside a residual path.
#pragma once
#include <memory>

#include "models/layers/mixer.h"
#include "models/layers/mlp.h"
#include "models/layers/norm.h"

namespace braid {

/// x += mixer(attn_norm(x)); x += mlp(mlp_norm(x)).
class Block final : public Module {
 public:
  Block(const ModelConfig& config, int64_t layer_idx, const Parameter& lower_bounds);

  /// in.x [N, hidden_size] is the residual stream; returns it updated. `recompute_mlp`: the MLP runs again in backward.
  Tensor operator()(Context& ctx, const MixerInput& in, bool recompute_mlp = false) const;
  const Mixer& mixer() const { return *mixer_; }

 private:
  NormLayer attn_norm_;
  std::unique_ptr<Mixer> mixer_;
  NormLayer mlp_norm_;
  Mlp mlp_;
};

}  // namespace braid
