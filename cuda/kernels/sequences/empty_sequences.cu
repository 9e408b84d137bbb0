#include "cuda/kernels/operands.h"
#include "cuda/kernels/sequences/empty_sequences.h"
#include "cuda/runtime/check.h"

namespace braid::cuda {
namespace {

struct PassParams {
  const int64_t* cu_seqlens;  // [S+1]
  const float* from;          // [S, width] or null
  float* to;                  // [S, width]
  int64_t S, width;
};

__global__ void pass_kernel(PassParams p) {
  for (int64_t s = blockIdx.x; s < p.S; s += gridDim.x) {
    if (p.cu_seqlens[s] != p.cu_seqlens[s + 1]) continue;
    for (int64_t i = threadIdx.x; i < p.width; i += blockDim.x) p.to[s * p.width + i] = p.from ? p.from[s * p.width + i] : 0.0f;
  }
}

}  // namespace

void pass_empty_sequences(Context& ctx, const Sequences& seqs, const Tensor& from, const Tensor& to) {
  if (!to || to.numel() == 0) return;
  const int64_t S = seqs.count();
  bool any = false;
  for (int64_t s = 0; s < S; ++s) any |= seqs.length(s) == 0;
  if (!any) return;
  const PassParams params{seqs.on_device(ctx).data<int64_t>(), address_of<float>(from), to.data<float>(), S, to.numel() / S};
  launch(ctx.stream(), "pass_empty_sequences", &pass_kernel, {.grid = static_cast<unsigned>(S < 1024 ? S : 1024), .block = 256}, params);
}

}  // namespace braid::cuda
