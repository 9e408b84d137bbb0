// Division of rows by their length.
//
//   y = x · r,   r = 1 / sqrt(Σ x² + eps)
//
// Gradient:  d_x = r · (d_y − y · Σ(d_y * y))
#pragma once
#include "autograd/apply.h"

namespace braid {

/// Errors: x without a dimension or not floating; on a GPU D above 8,192.
struct L2Norm {
  static constexpr std::string_view name = "l2_norm";
  struct Inputs {
    Tensor x;  // [..., D]
    static constexpr std::array<std::string_view, 1> names = {"x"};
  };
  struct Outputs {
    Tensor y;  // like x
    static constexpr std::array<std::string_view, 1> names = {"y"};
  };
  struct Saved {
    Tensor x;
    Tensor scale;  // r [rows], accumulator type
  };
  struct Attrs {
    double eps = 1e-6;
  };
  static Outputs allocate(Context& ctx, const Inputs& in, const Attrs& attrs);
  static Saved forward_cpu(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out);
  static void backward_cpu(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in);
  static Saved forward_cuda(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out);
  static void backward_cuda(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in);
};
static_assert(Differentiable<L2Norm>);

}  // namespace braid
