#include "models/layers/projection.h"

namespace braid {

Projection::Projection(const ModelConfig& config, const std::string& name, const std::string& letter, int64_t out, ProjectionActivation activation)
    : linear_(name + "." + letter + "_proj", config.hidden_size, out),
      out_(out),
      width_(config.use_short_conv ? config.conv_size : 0),
      activation_(activation) {
  adopt(linear_);
  if (width_ > 0) declare(conv_, name + "." + letter + "_conv1d.weight", {out, 1, width_});
}

ProjectionMap Projection::map(Context& ctx, const MixerInput& in, int conv_idx, int64_t norm_dim) const {
  const bool silu = activation_ == ProjectionActivation::always || (width_ > 0 && activation_ == ProjectionActivation::with_conv);
  ProjectionMap map = linear_.map(ctx, silu ? MapActivation::silu : MapActivation::none);
  if (width_ == 0) return map;
  map.conv = conv_.use(ctx).view({out_, width_});
  if (normalizes(in)) map.norm_dim = norm_dim;
  if (in.state) map.tail = &in.state->conv[conv_idx];
  return map;
}

}  // namespace braid
