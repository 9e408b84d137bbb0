#include "cuda/kernels/gated_linear_attention/walk_kernel.h"

namespace braid::gla_cuda {

void launch_walk_keys(Context& ctx, const WalkParams& params) {
  launch_walk<Walk::keys>(ctx, "gated_linear_attention_walk_keys", params.problem.V, params);
}

}  // namespace braid::gla_cuda
