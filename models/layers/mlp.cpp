#include "models/layers/mlp.h"

namespace braid {

Mlp::Mlp(const std::string& name, int64_t hidden_size, int64_t width)
    : gate_(name + ".gate_proj", hidden_size, width), up_(name + ".up_proj", hidden_size, width), down_(name + ".down_proj", width, hidden_size) {
  adopt(gate_);
  adopt(up_);
  adopt(down_);
}

Tensor Mlp::operator()(Context& ctx, const Tensor& x) const { return down_(ctx, project_swiglu(ctx, x, gate_.weight.use(ctx), up_.weight.use(ctx))); }

}  // namespace braid
