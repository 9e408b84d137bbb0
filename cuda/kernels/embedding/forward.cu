#include "cuda/device/overlap.h"
#include "cuda/device/scalar.h"
#include "cuda/kernels/embedding/rows.h"
#include "cuda/kernels/operands.h"
#include "ops/embedding.h"

namespace braid {
namespace {

struct GatherParams {
  const int64_t* tokens;  // [N]
  const void* weight;     // [V, D]
  void* y;                // [N, D]
  int64_t N, V, D;
};

template <class T, int width>
__global__ void __launch_bounds__(256) embedding_forward(GatherParams p) {
  device::begin_overlapping();
  for (int64_t n = blockIdx.x; n < p.N; n += gridDim.x) {
    const int64_t token = p.tokens[n];
    const bool known = token >= 0 && token < p.V;  // the caller checks where tokens are on the host; NaN shows that it did not
    for (int64_t d = threadIdx.x * width; d < p.D; d += blockDim.x * width) {
      float row[width];
#pragma unroll
      for (int j = 0; j < width; ++j) row[j] = __int_as_float(0x7fffffff);
      if (known) device::load(static_cast<const T*>(p.weight) + token * p.D + d, row);
      device::store(static_cast<T*>(p.y) + n * p.D + d, row);
    }
  }
}

}  // namespace

Embedding::Saved Embedding::forward_cuda(Context& ctx, const Inputs& in, const Attrs&, Outputs& out) {
  cuda::require_kernel_dtype(name, in.weight.dtype());
  const int64_t N = in.tokens.numel(), V = in.weight.size(0), D = in.weight.size(1);
  const GatherParams params{in.tokens.data<int64_t>(), in.weight.raw(), out.y.raw(), N, V, D};
  const bool wide = D % 4 == 0 && cuda::aligned16(in.weight);
  const auto run = [&](void (*kernel)(GatherParams)) {
    cuda::launch(ctx.stream(), "embedding_forward", kernel, cuda::rows_config(N, D, wide ? 4 : 1), params);
  };
  if (in.weight.dtype() == DType::bf16) run(wide ? &embedding_forward<device::bf16, 4> : &embedding_forward<device::bf16, 1>);
  else run(wide ? &embedding_forward<float, 4> : &embedding_forward<float, 1>);
  return {in.tokens};
}

}  // namespace braid
