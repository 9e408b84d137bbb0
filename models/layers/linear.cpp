#include "models/layers/linear.h"

#include "ops/linear.h"

namespace braid {

LinearLayer::LinearLayer(const std::string& name, int64_t in, int64_t out, bool has_bias) : has_bias_(has_bias) {
  declare(weight, name + ".weight", {out, in});
  if (has_bias) declare(bias, name + ".bias", {out}, Init::zeros);
}

Tensor LinearLayer::operator()(Context& ctx, const Tensor& x) const { return linear(ctx, x, weight.use(ctx), has_bias_ ? bias.use(ctx) : Tensor{}); }

}  // namespace braid
