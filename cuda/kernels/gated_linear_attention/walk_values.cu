#include "cuda/kernels/gated_linear_attention/walk_kernel.h"

namespace braid::gla_cuda {

void launch_walk_values(Context& ctx, const WalkParams& params) {
  if (params.reverse) launch_walk_values_reverse(ctx, params);
  else launch_walk<Walk::values>(ctx, "gated_linear_attention_walk_values", params.problem.K, params);
}

}  // namespace braid::gla_cuda
