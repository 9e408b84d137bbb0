// RMSNorm with its weight.
#pragma once
#include "models/module.h"
#include "ops/rms_norm.h"

namespace braid {

/// `name`.weight [width], first value 1.
class NormLayer final : public Module {
 public:
  NormLayer(const std::string& name, int64_t width, double eps);
  /// x [..., width] → like x.
  Tensor operator()(Context& ctx, const Tensor& x) const;
  /// x + residual, normalised, and the sum itself; without a residual (undefined) x, to go on from beside the norm.
  RmsNorm::Outputs add(Context& ctx, const Tensor& x, const Tensor& residual) const;

  Parameter weight;

 private:
  double eps_;
};

}  // namespace braid
