// A row added to every row, and its gradient.
#pragma once
#include "core/context.h"

namespace braid::cuda {

/// y [rows, D] += bias [D]; y bf16 or f32, bias of y's dtype or f32.
void add_bias(Context& ctx, const Tensor& y, const Tensor& bias);
/// total [D] = Σ over rows of x [rows, D], in a fixed order; total of x's dtype or f32.
void sum_rows(Context& ctx, const Tensor& x, const Tensor& total);

}  // namespace braid::cuda
