// Key and value heads shared by groups of query heads, written out: for recurrences, which keep one state per query head.
//
//   y[n, h] = x[n, h / groups]          d_x[n, j] = Σ_{g < groups} d_y[n, j·groups + g]
//
// Source: Ainslie et al., "GQA: Training Generalized Multi-Query Transformer Models", EMNLP 2023.
#pragma once
#include "autograd/apply.h"

namespace braid {

/// Errors: x not [N, HK, D], groups below 1.
struct RepeatHeads {
  static constexpr std::string_view name = "repeat_heads";
  struct Inputs {
    Tensor x;  // [N, HK, D], floating
    static constexpr std::array<std::string_view, 1> names = {"x"};
  };
  struct Outputs {
    Tensor y;  // [N, HK · groups, D], dtype of x
    static constexpr std::array<std::string_view, 1> names = {"y"};
  };
  struct Saved {};
  struct Attrs {
    int64_t groups = 1;  // at least 1
  };
  static Outputs allocate(Context& ctx, const Inputs& in, const Attrs& attrs);
  static Saved forward_cpu(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out);
  static void backward_cpu(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in);
  static Saved forward_cuda(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out);
  static void backward_cuda(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in);
};
static_assert(Differentiable<RepeatHeads>);

}  // namespace braid
