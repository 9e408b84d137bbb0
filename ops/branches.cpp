#include "ops/branches.h"

#include "autograd/operator.h"

namespace braid {

Branches::Branches(Context& ctx, [[maybe_unused]] bool wanted) : ctx_(ctx) {
  if constexpr (kWithCuda)
    if (wanted && !ctx.on_cpu()) recording_ = begin_branches_cuda(ctx);
}

Branches::~Branches() {
  if constexpr (kWithCuda)
    if (recording_) end_branches_cuda(ctx_);
}

void Branches::next() {
  if constexpr (kWithCuda)
    if (recording_) next_branch_cuda(ctx_);
}

}  // namespace braid
