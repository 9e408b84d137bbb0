// What every token mixer offers to a block.
#pragma once
#include <algorithm>
#include <array>
#include <memory>

#include "models/config.h"
#include "models/module.h"
#include "models/state.h"
#include "ops/projections.h"

namespace braid {

/// The tokens of one call: the layout and, when decoding, what went before.
struct MixerInput {
  Tensor x;  // [N, hidden_size], normalised
  const Sequences& seqs;
  LayerState* state = nullptr;                      // read and updated; null: every sequence starts anew
  const std::vector<int64_t>* positions = nullptr;  // with a state: position of each sequence's first token here
  Tensor device_positions = {};                     // the same, i64 [S] on a GPU, when decoding is recorded as a graph; `positions` stand still then
};

/// What the maps make of the mixer's x.
template <size_t count>
std::array<Tensor, count> project_each(Context& ctx, const MixerInput& in, const ProjectionMap (&maps)[count]) {
  std::array<Tensor, count> ys;
  std::ranges::move(project_each(ctx, in.x, in.seqs, maps), ys.begin());
  return ys;
}

/// Per token and layer, in elements and floating-point operations of the forward pass.
struct MixerCost {
  int64_t state_elements = 0;  // recurrent state and convolution tails of a sequence
  int64_t kv_elements = 0;     // keys and values of a token
  double recurrence_flops = 0;
  double attention_flops_per_span = 0;  // for each token that a query sees
  int64_t window = 0;
};

class Mixer : public Module {
 public:
  virtual ~Mixer() = default;
  /// [N, hidden_size].
  virtual Tensor forward(Context& ctx, const MixerInput& in) const = 0;
  virtual MixerCost cost() const = 0;
};

/// The mixer of layer `layer_idx`, its parameters named from `name` ("model.layers.3.attn"). `lower_bounds` is the model's, for
/// families that have it. A new mixer is one file and one line here.
std::unique_ptr<Mixer> make_mixer(const ModelConfig& config, int64_t layer_idx, const std::string& name, const Parameter& lower_bounds);

}  // namespace braid
