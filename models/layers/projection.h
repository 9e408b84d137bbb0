// A linear map that may be followed by a short convolution and SiLU: how mixers make q, k, v and their like.
#pragma once
#include <optional>

#include "models/layers/linear.h"
#include "models/layers/mixer.h"

namespace braid {

/// When SiLU is applied.
enum class ProjectionActivation : uint8_t { never, with_conv, always };

/// `name`.`letter`_proj.weight [out, in] and, with use_short_conv, `name`.`letter`_conv1d.weight [out, 1, conv_size]: depthwise, causal.
class Projection final : public Module {
 public:
  Projection(const ModelConfig& config, const std::string& name, const std::string& letter, int64_t out, ProjectionActivation activation);
  /// For project_each: x [N, in] → [N, out]. With a state, `conv_idx` is this projection's place among the mixer's convolutions. norm_dim: heads of
  /// so many channels are to be divided by their length, if `normalizes`.
  ProjectionMap map(Context& ctx, const MixerInput& in, int conv_idx, int64_t norm_dim = 0) const;
  /// Whether the convolution divides heads by their length, in the launch it has anyway. With a state the recurrence does: one token's convolution is
  /// part of the product before it, whose blocks do not know whole heads.
  bool normalizes(const MixerInput& in) const { return width_ > 0 && !in.state; }
  /// Of the convolution: elements that a sequence keeps, and floating-point operations per token.
  int64_t tail_elements() const { return width_ > 0 ? out_ * (width_ - 1) : 0; }
  double conv_flops() const { return 2.0 * static_cast<double>(out_ * width_); }

 private:
  LinearLayer linear_;
  Parameter conv_;
  int64_t out_;
  int64_t width_;  // of the convolution; 0: none
  ProjectionActivation activation_;
};

/// Sums the convolutions of `projections` into a mixer's cost.
template <class... Projections>
void add_conv_cost(MixerCost& cost, const Projections&... projections) {
  cost.state_elements += (projections.tail_elements() + ...);
  cost.recurrence_flops += (projections.conv_flops() + ...);
}

}  // namespace braid
