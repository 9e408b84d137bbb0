// Sums of per-block partial rows: the second half of a deterministic sum over all rows.
#pragma once
#include "core/context.h"

namespace braid::cuda {

/// total [D] = Σ over the rows of partials [rows, D], in order (f32; `total` of any floating dtype); `add` adds to what it holds.
void sum_partials(Context& ctx, const Tensor& partials, const Tensor& total, bool add = false);

}  // namespace braid::cuda
