// A linear map with its weight.
#pragma once
#include "models/module.h"

namespace braid {

/// `name`.weight [out, in], normal; with `has_bias` `name`.bias [out], first value 0.
class LinearLayer final : public Module {
 public:
  LinearLayer(const std::string& name, int64_t in, int64_t out, bool has_bias = false);
  /// x [..., in] → [..., out].
  Tensor operator()(Context& ctx, const Tensor& x) const;

  Parameter weight, bias;

 private:
  bool has_bias_;
};

}  // namespace braid
