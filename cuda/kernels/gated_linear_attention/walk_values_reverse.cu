#include "cuda/kernels/gated_linear_attention/walk_kernel.h"

namespace braid::gla_cuda {

void launch_walk_values_reverse(Context& ctx, const WalkParams& params) {
  launch_walk<Walk::values_reverse>(ctx, "gated_linear_attention_walk_values", params.problem.K, params);
}

}  // namespace braid::gla_cuda
