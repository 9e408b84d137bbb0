#include "models/layers/projection.h"

#include "ops/elementwise.h"

namespace braid {

Projection::Projection(const ModelConfig& config, const std::string& name, const std::string& letter, int64_t out, ProjectionActivation activation)
    : linear_(name + "." + letter + "_proj", config.hidden_size, out),
      out_(out),
      width_(config.use_short_conv ? config.conv_size : 0),
      activation_(activation) {
  adopt(linear_);
  if (width_ > 0) declare(conv_, name + "." + letter + "_conv1d.weight", {out, 1, width_});
}

Tensor Projection::operator()(Context& ctx, const MixerInput& in, int conv_idx) const {
  const Tensor y = linear_(ctx, in.x);
  if (width_ == 0) return activation_ == ProjectionActivation::always ? apply<Silu>(ctx, {y}).y : y;
  const ConvActivation activation = activation_ == ProjectionActivation::never ? ConvActivation::none : ConvActivation::silu;
  Tensor* tail = in.state ? &in.state->conv[conv_idx] : nullptr;
  auto out = apply<ShortConv>(ctx, {y, conv_.use(ctx).view({out_, width_}), tail ? *tail : Tensor{}}, {in.seqs, activation});
  if (tail) *tail = out.final_state;
  return out.o;
}

}  // namespace braid
