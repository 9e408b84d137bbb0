#include "cuda/kernels/gated_linear_attention/walk_kernel.h"

namespace braid::gla_cuda {

void launch_walk_local(Context& ctx, const WalkParams& params) {
  launch_walk<Walk::local>(ctx, "gated_linear_attention_walk_local", params.problem.K, params);
}

}  // namespace braid::gla_cuda
