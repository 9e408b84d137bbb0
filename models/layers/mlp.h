// The gated MLP: down(silu(gate(x)) · up(x)).
//
// Source: Shazeer, "GLU Variants Improve Transformer", 2020.
#pragma once
#include "models/layers/linear.h"

namespace braid {

/// `name`.{gate,up,down}_proj.weight.
class Mlp final : public Module {
 public:
  Mlp(const std::string& name, int64_t hidden_size, int64_t width);
  /// x [N, hidden_size] → like x.
  Tensor operator()(Context& ctx, const Tensor& x) const;

 private:
  LinearLayer gate_, up_, down_;
};

}  // namespace braid
