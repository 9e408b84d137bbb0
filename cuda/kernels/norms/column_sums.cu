#include "cuda/device/scalar.h"
#include "cuda/kernels/norms/column_sums.h"
#include "cuda/runtime/check.h"

namespace braid::cuda {
namespace {

struct SumParams {
  const float* partials;  // [rows, D]
  void* total;            // [D]
  int64_t rows, D;
  bool add;
};

constexpr int kWarps = 32;

// A block owns 32 columns; each of its warps takes every 32nd row, then warp 0 adds the sums in order.
template <class T>
__global__ void __launch_bounds__(32 * kWarps) sum_kernel(SumParams p) {
  __shared__ float sums[kWarps][33];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t column = int64_t{blockIdx.x} * 32 + lane;
  float sum = 0;
  if (column < p.D) {
#pragma unroll 8
    for (int64_t row = warp; row < p.rows; row += kWarps) sum += p.partials[row * p.D + column];
  }
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp != 0 || column >= p.D) return;
  T* total = static_cast<T*>(p.total) + column;
  float result = p.add ? device::to_float(*total) : 0.0f;
  for (int i = 0; i < kWarps; ++i) result += sums[i][lane];
  *total = device::from_float<T>(result);
}

}  // namespace

void sum_partials(Context& ctx, const Tensor& partials, const Tensor& total, bool add) {
  const SumParams params{partials.data<float>(), total.raw(), partials.size(0), partials.size(1), add};
  const LaunchConfig config{.grid = static_cast<unsigned>((params.D + 31) / 32), .block = 32 * kWarps};
  if (total.dtype() == DType::f32) launch(ctx.stream(), "sum_partials", &sum_kernel<float>, config, params);
  else launch(ctx.stream(), "sum_partials", &sum_kernel<device::bf16>, config, params);
}

}  // namespace braid::cuda
