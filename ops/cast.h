// Change of floating dtype.
//
//   y = x in another dtype, rounded to nearest even;   d_x = d_y in x's dtype
#pragma once
#include "autograd/apply.h"

namespace braid {

/// Errors: x or the dtype wanted not f64, f32 or bf16.
struct Cast {
  static constexpr std::string_view name = "cast";
  struct Inputs {
    Tensor x;  // any shape; f64, f32 or bf16
    static constexpr std::array<std::string_view, 1> names = {"x"};
  };
  struct Outputs {
    Tensor y;  // shape of x, attrs.dtype
    static constexpr std::array<std::string_view, 1> names = {"y"};
  };
  struct Saved {};
  struct Attrs {
    DType dtype = DType::f32;  // f64, f32 or bf16
  };
  static Outputs allocate(Context& ctx, const Inputs& in, const Attrs& attrs);
  static Saved forward_cpu(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out);
  static void backward_cpu(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in);
  static Saved forward_cuda(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out);
  static void backward_cuda(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in);
};
static_assert(Differentiable<Cast>);

}  // namespace braid
