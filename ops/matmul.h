// Matrix product.
//
//   c = op(a) · op(b),   op transposes where its attribute says so; [M, K] · [K, N] after op
//
// Gradient (no transposes): d_a = d_c · bᵀ, d_b = aᵀ · d_c; a transposed argument gets the transpose of that.
#pragma once
#include "autograd/apply.h"

namespace braid {

/// Errors: a or b not of two dimensions, inner extents or dtypes that differ.
struct Matmul {
  static constexpr std::string_view name = "matmul";
  struct Inputs {
    Tensor a;  // [M, K], or [K, M] with transpose_a
    Tensor b;  // [K, N], or [N, K] with transpose_b; dtype of a
    static constexpr std::array<std::string_view, 2> names = {"a", "b"};
  };
  struct Outputs {
    Tensor c;  // [M, N], dtype of a
    static constexpr std::array<std::string_view, 1> names = {"c"};
  };
  struct Saved {
    Tensor a, b;
  };
  struct Attrs {
    bool transpose_a = false, transpose_b = false;
  };
  static Outputs allocate(Context& ctx, const Inputs& in, const Attrs& attrs);
  static Saved forward_cpu(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out);
  static void backward_cpu(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in);
  static Saved forward_cuda(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out);
  static void backward_cuda(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in);
};
static_assert(Differentiable<Matmul>);

}  // namespace braid
