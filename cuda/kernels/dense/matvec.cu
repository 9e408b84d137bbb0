#include "cuda/device/overlap.h"
#include "cuda/device/scalar.h"
#include "cuda/kernels/dense/matvec.h"
#include "cuda/kernels/operands.h"
#include "cuda/runtime/check.h"
#include "cuda/runtime/runtime.h"

namespace braid::cuda {
namespace {

using device::bf16;

constexpr int kPack = 8, kWarps = 4, kStep = 32 * kPack;

struct MatvecParams {
  const bf16* weight;  // [n, k]
  const bf16* x;       // [k]
  bf16* y;             // [n]
  int64_t n, k;
};

// A warp has one row. kUnroll loads of 16 bytes a lane are in flight before the first is used: 16 warps on a multiprocessor then keep enough
// bytes on their way to use all of the memory's bandwidth. Where a graph is recorded the first of them start while x is still being computed:
// no recorded graph writes a weight.
template <int kUnroll>
__global__ void __launch_bounds__(32 * kWarps) matvec_kernel(MatvecParams p) {
  const int lane = threadIdx.x % 32;
  const int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32, first = lane * kPack;
  if (row >= p.n) return;
  const bf16* weight = p.weight + row * p.k;
  float sum = 0;
  uint4 w[kUnroll];
  const auto fetch = [&](int64_t base) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t at = base + u * kStep;
      w[u] = at < p.k ? __ldcs(reinterpret_cast<const uint4*>(weight + at)) : uint4{0, 0, 0, 0};
    }
  };
  fetch(first);
  device::wait_for_earlier_kernels();
  for (int64_t base = first; base < p.k; base += int64_t{kUnroll} * kStep) {
    if (base > first) fetch(base);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t at = base + u * kStep;
      if (at >= p.k) continue;
      const uint4 x = *reinterpret_cast<const uint4*>(p.x + at);
      const auto* a = reinterpret_cast<const __nv_bfloat162*>(&w[u]);
      const auto* b = reinterpret_cast<const __nv_bfloat162*>(&x);
#pragma unroll
      for (int j = 0; j < kPack / 2; ++j) {
        const float2 left = __bfloat1622float2(a[j]), right = __bfloat1622float2(b[j]);
        sum = fmaf(left.x, right.x, sum);
        sum = fmaf(left.y, right.y, sum);
      }
    }
  }
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
  if (lane == 0) p.y[row] = __float2bfloat16_rn(sum);
}

}  // namespace

bool takes_vector(const Tensor& weight, const Tensor& x, const Tensor& y) {
  return weight.dtype() == DType::bf16 && x.dtype() == DType::bf16 && y.dtype() == DType::bf16 && weight.size(1) % kPack == 0 && aligned16(weight) &&
         aligned16(x);
}

void multiply_vector(Context& ctx, const Tensor& weight, const Tensor& x, const Tensor& y) {
  const MatvecParams params{reinterpret_cast<const bf16*>(weight.raw()), reinterpret_cast<const bf16*>(x.raw()), reinterpret_cast<bf16*>(y.raw()),
                            weight.size(0), weight.size(1)};
  const bool overlaps = facts(ctx.device().index).compute_capability >= 90 && is_recorded(ctx.stream());
  const LaunchConfig config{.grid = static_cast<unsigned>((params.n + kWarps - 1) / kWarps), .block = 32 * kWarps, .overlaps = overlaps};
  if (params.k <= 4 * kStep) launch(ctx.stream(), "matvec", &matvec_kernel<4>, config, params);
  else launch(ctx.stream(), "matvec", &matvec_kernel<8>, config, params);
}

}  // namespace braid::cuda
