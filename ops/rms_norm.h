// Root-mean-square normalisation, with the residual addition before it.
//
//   sum = x + residual            (without a residual sum = x)
//   y   = sum / sqrt(mean(sum²) + eps) * weight
//
// Gradient, with r = 1 / sqrt(mean(sum²) + eps), n = sum·r, g = d_y * weight:
//   d_sum' = r · (g − n · mean(g * n)) + d_sum,   d_x = d_residual = d_sum',   d_weight = Σ_rows d_y * n
//
// Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", NeurIPS 2019.
#pragma once
#include "autograd/apply.h"

namespace braid {

/// Errors: x without a dimension, a weight that is not [D], a residual unlike x; on a GPU D above 8,192.
struct RmsNorm {
  static constexpr std::string_view name = "rms_norm";
  struct Inputs {
    Tensor x;         // [..., D]
    Tensor weight;    // [D], f32 (f64 for f64)
    Tensor residual;  // like x, optional
    static constexpr std::array<std::string_view, 3> names = {"x", "weight", "residual"};
  };
  struct Outputs {
    Tensor y;    // like x
    Tensor sum;  // like x; undefined without a residual, unless attrs.pass_x
    static constexpr std::array<std::string_view, 2> names = {"y", "sum"};
  };
  struct Saved {
    Tensor sum, weight;
    Tensor rstd;  // [rows], accumulator type
  };
  struct Attrs {
    double eps = 1e-6;
    bool pass_x = false;  // without a residual: sum is x itself, so that the gradient of x beside the norm is added where d_x is written
  };
  static Outputs allocate(Context& ctx, const Inputs& in, const Attrs& attrs);
  static Saved forward_cpu(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out);
  static void backward_cpu(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in);
  static Saved forward_cuda(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out);
  static void backward_cuda(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in);
};
static_assert(Differentiable<RmsNorm>);

}  // namespace braid
