// A linear map with its weight.
#pragma once
#include "models/module.h"
#include "ops/projections.h"

namespace braid {

/// `name`.weight [out, in], normal; with `has_bias` `name`.bias [out], first value 0.
class LinearLayer final : public Module {
 public:
  LinearLayer(const std::string& name, int64_t in, int64_t out, bool has_bias = false);
  /// x [..., in] → [..., out].
  Tensor operator()(Context& ctx, const Tensor& x) const;

  /// The same as a part of project_each.
  ProjectionMap map(Context& ctx, MapActivation activation = MapActivation::none) const {
    return {.weight = weight.use(ctx), .bias = has_bias_ ? bias.use(ctx) : Tensor{}, .activation = activation};
  }

  Parameter weight, bias;

 private:
  bool has_bias_;
};

}  // namespace braid
