// One layer of the model: mixer and MLP, each behind a norm and beside a residual path.
#pragma once
#include <memory>

#include "models/layers/mixer.h"
#include "models/layers/mlp.h"
#include "models/layers/norm.h"

namespace braid {

/// The residual stream between blocks: `x`, or `x + update` where an update is left for the next norm to add in passing.
struct ResidualStream {
  Tensor x, update;  // [N, hidden_size] each; update may be undefined
};

/// x += mixer(attn_norm(x)); x += mlp(mlp_norm(x)).
class Block final : public Module {
 public:
  Block(const ModelConfig& config, int64_t layer_idx, const Parameter& lower_bounds);

  /// The stream after this layer, the MLP's update not yet added. `in` is what the mixer is given, but for its x. `recompute_mlp`: the MLP runs
  /// again in backward.
  ResidualStream operator()(Context& ctx, const ResidualStream& stream, MixerInput in, bool recompute_mlp = false) const;
  const Mixer& mixer() const { return *mixer_; }

 private:
  NormLayer attn_norm_;
  std::unique_ptr<Mixer> mixer_;
  NormLayer mlp_norm_;
  Mlp mlp_;
};

}  // namespace braid
