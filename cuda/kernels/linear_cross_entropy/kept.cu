// What the forward of linear_cross_entropy needs besides the softmax to make gradients at once, and the backward to use them.
#include "cuda/device/scalar.h"
#include "cuda/kernels/linear_cross_entropy/softmax.h"
#include "cuda/kernels/operands.h"
#include "cuda/runtime/check.h"

namespace braid::cuda {
namespace {

constexpr int kThreads = 256, kCountThreads = 1024;

struct ScaleParams {
  const int64_t* targets;  // [N]
  float* scale;            // []
  int64_t N;
  double denominator;
};

__global__ void __launch_bounds__(kCountThreads) scale_kernel(ScaleParams p) {
  int64_t count = 0;
  for (int64_t first = 0; first < p.N; first += kCountThreads) {
    const int64_t n = first + threadIdx.x;
    count += __syncthreads_count(n < p.N && p.targets[n] >= 0);
  }
  if (threadIdx.x == 0) *p.scale = static_cast<float>(1 / (p.denominator != 0 ? p.denominator : static_cast<double>(count > 1 ? count : 1)));
}

struct ScaledParams {
  void* to;             // [count]
  const void* from;     // [count]
  const float* factor;  // []
  int64_t count;
};

template <class T, int width, bool add>
__global__ void __launch_bounds__(kThreads) scaled_kernel(ScaledParams p) {
  T* to = static_cast<T*>(p.to);
  const T* from = static_cast<const T*>(p.from);
  const float factor = *p.factor;
  const int64_t step = int64_t{gridDim.x} * kThreads * width;
  for (int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * width; i < p.count; i += step) {
    float values[width], sums[width];
    device::load(from + i, values);
    if constexpr (add) device::load(to + i, sums);
#pragma unroll
    for (int j = 0; j < width; ++j) values[j] = factor * values[j] + (add ? sums[j] : 0.0f);
    device::store(to + i, values);
  }
}

template <class T, bool add>
void launch_scaled_of(Context& ctx, const ScaledParams& params, bool wide) {
  constexpr int kWidth = 16 / sizeof(T);
  const int64_t pieces = (params.count + kThreads - 1) / kThreads / (wide ? kWidth : 1) + 1;
  const LaunchConfig config{.grid = static_cast<unsigned>(pieces < 4096 ? pieces : 4096), .block = kThreads};
  launch(ctx.stream(), "linear_cross_entropy_scaled", wide ? &scaled_kernel<T, kWidth, add> : &scaled_kernel<T, 1, add>, config, params);
}

}  // namespace

void launch_loss_scale(Context& ctx, const Tensor& targets, double denominator, const Tensor& scale) {
  const ScaleParams params{targets.data<int64_t>(), scale.data<float>(), targets.numel(), denominator};
  launch(ctx.stream(), "linear_cross_entropy_scale", &scale_kernel, {.grid = 1, .block = kCountThreads}, params);
}

void launch_scaled(Context& ctx, const Tensor& to, const Tensor& from, const Tensor& factor, bool add) {
  BRAID_CHECK(to.dtype() == from.dtype() && to.numel() == from.numel() && !(add && to.dtype() == DType::bf16), "linear_cross_entropy: cannot scale ",
              from.dtype(), " ", from.shape(), add ? " and add it to " : " into ", to.dtype(), " ", to.shape());
  if (to.numel() == 0) return;
  const ScaledParams params{to.raw(), from.raw(), factor.data<float>(), to.numel()};
  const bool wide = aligned16(to) && aligned16(from) && to.numel() % (16 / size_bytes(to.dtype())) == 0;
  if (to.dtype() == DType::bf16) return launch_scaled_of<device::bf16, false>(ctx, params, wide);
  if (add) return launch_scaled_of<float, true>(ctx, params, wide);
  launch_scaled_of<float, false>(ctx, params, wide);
}

}  // namespace braid::cuda
