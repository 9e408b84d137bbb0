// Token embedding: rows of a table.
//
//   y_n = weight[tokens_n]
//
// Gradient: d_weight[t] += Σ_{n: tokens_n = t} d_y_n, added in place, in the order of n (the same bits every time).
#pragma once
#include "autograd/apply.h"

namespace braid {

/// Errors: shapes and dtypes that do not fit; on the CPU a token outside [0, V), named with its index. On a GPU the caller checks
/// tokens where they are on the host (data sets and prompts do).
struct Embedding {
  static constexpr std::string_view name = "embedding";
  static constexpr int accumulates = 1;  // d_weight
  struct Inputs {
    Tensor tokens;  // i64 [N]
    Tensor weight;  // [V, D]
    static constexpr std::array<std::string_view, 2> names = {"tokens", "weight"};
  };
  struct Outputs {
    Tensor y;  // [N, D], dtype of weight
    static constexpr std::array<std::string_view, 1> names = {"y"};
  };
  struct Saved {
    Tensor tokens;
  };
  struct Attrs {};
  static Outputs allocate(Context& ctx, const Inputs& in, const Attrs& attrs);
  static Saved forward_cpu(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out);
  static void backward_cpu(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in);
  static Saved forward_cuda(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out);
  static void backward_cuda(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in);
};
static_assert(Differentiable<Embedding>);

}  // namespace braid
