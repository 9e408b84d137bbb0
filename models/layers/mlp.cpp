#include "models/layers/mlp.h"

#include "models/layers/mixer.h"
#include "ops/branches.h"
#include "ops/swiglu.h"

namespace braid {

Mlp::Mlp(const std::string& name, int64_t hidden_size, int64_t width)
    : gate_(name + ".gate_proj", hidden_size, width), up_(name + ".up_proj", hidden_size, width), down_(name + ".down_proj", width, hidden_size) {
  adopt(gate_);
  adopt(up_);
  adopt(down_);
}

Tensor Mlp::operator()(Context& ctx, const Tensor& x) const {
  Tensor gate, up;
  {
    Branches parts(ctx, is_one_token(x));
    gate = gate_(ctx, x);
    parts.next();
    up = up_(ctx, x);
  }
  return down_(ctx, apply<SwiGlu>(ctx, {gate, up}).y);
}

}  // namespace braid
