// The product inside a gated MLP.
//
//   y = silu(gate) * up,   silu(z) = z · sigmoid(z)
//
// Gradient:  d_gate = d_y * up * silu'(gate),   d_up = d_y * silu(gate),   silu'(z) = s + z·s·(1 − s) with s = sigmoid(z)
//
// Source: Shazeer, "GLU Variants Improve Transformer", 2020.
#pragma once
#include "autograd/apply.h"

namespace braid {

/// Errors: a gate that is not floating, an up unlike it.
struct SwiGlu {
  static constexpr std::string_view name = "swiglu";
  struct Inputs {
    Tensor gate;  // any shape
    Tensor up;    // like gate
    static constexpr std::array<std::string_view, 2> names = {"gate", "up"};
  };
  struct Outputs {
    Tensor y;  // like gate
    static constexpr std::array<std::string_view, 1> names = {"y"};
  };
  struct Saved {
    Tensor gate, up;
  };
  struct Attrs {};
  static Outputs allocate(Context& ctx, const Inputs& in, const Attrs& attrs);
  static Saved forward_cpu(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out);
  static void backward_cpu(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in);
  static Saved forward_cuda(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out);
  static void backward_cuda(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in);
};
static_assert(Differentiable<SwiGlu>);

}  // namespace braid
