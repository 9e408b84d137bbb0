// Affine map of the last dimension.
//
//   y = x · weightᵀ + bias
//
// Gradient, over all rows:  d_x = d_y · weight,   d_weight += d_yᵀ · x (added in place),   d_bias = Σ_rows d_y
#pragma once
#include "autograd/apply.h"

namespace braid {

/// Errors: x without a dimension, a weight that is not [out, in] like x, a bias that is not [out].
struct Linear {
  static constexpr std::string_view name = "linear";
  static constexpr int accumulates = 1;  // weight
  struct Inputs {
    Tensor x;       // [..., in]
    Tensor weight;  // [out, in], dtype of x
    Tensor bias;    // [out], optional; dtype of x or its accumulator type
    static constexpr std::array<std::string_view, 3> names = {"x", "weight", "bias"};
  };
  struct Outputs {
    Tensor y;  // [..., out], dtype of x
    static constexpr std::array<std::string_view, 1> names = {"y"};
  };
  struct Saved {
    Tensor x, weight;
  };
  struct Attrs {
    bool adds_d_x = false;  // backward_cuda adds to d_in.x instead of filling it
  };
  static Outputs allocate(Context& ctx, const Inputs& in, const Attrs& attrs);
  static Saved forward_cpu(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out);
  static void backward_cpu(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in);
  static Saved forward_cuda(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out);
  static void backward_cuda(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in);
};
static_assert(Differentiable<Linear>);

/// apply<Linear>, of one x by several maps: on a GPU the product that makes d_x adds it to what the tape has gathered of x's gradient. A sum of
/// its own would read and write three times as much, and round twice.
Tensor linear(Context& ctx, const Tensor& x, const Tensor& weight, const Tensor& bias = {});

}  // namespace braid
