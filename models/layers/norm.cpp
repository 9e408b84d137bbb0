#include "models/layers/norm.h"

namespace braid {

NormLayer::NormLayer(const std::string& name, int64_t width, double eps) : eps_(eps) { declare(weight, name + ".weight", {width}, Init::ones); }

Tensor NormLayer::operator()(Context& ctx, const Tensor& x) const { return apply<RmsNorm>(ctx, {x, weight.use(ctx), {}}, {eps_}).y; }

RmsNorm::Outputs NormLayer::add(Context& ctx, const Tensor& x, const Tensor& residual) const {
  return apply<RmsNorm>(ctx, {x, weight.use(ctx), residual}, {.eps = eps_, .pass_x = !residual.defined()});
}

}  // namespace braid
