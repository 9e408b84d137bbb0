#include <cfloat>

#include "cuda/device/reduce.h"
#include "cuda/device/scalar.h"
#include "cuda/kernels/linear_cross_entropy/softmax.h"
#include "cuda/runtime/check.h"

namespace braid::cuda {
namespace {

constexpr int kThreads = 256, kTotalThreads = 1024;

/// The largest logit seen and where it is first; the smaller index of equals wins, so the order of joining does not matter.
struct Highest {
  float value;
  int64_t idx;
  __device__ void join(float other, int64_t other_idx) {
    if (other > value || (other == value && other_idx < idx)) value = other, idx = other_idx;
  }
};

// A block has one row: the maximum, then Σ exp(logit − maximum), each in a fixed order.
__global__ void __launch_bounds__(kThreads) loss_kernel(LossRows p) {
  __shared__ float scratch[32];
  __shared__ float values[kThreads / 32];
  __shared__ int64_t indices[kThreads / 32];
  const int64_t row = blockIdx.x, target = p.targets[row];
  if (target < 0 && !p.prediction) {
    if (threadIdx.x == 0) p.token_loss[row] = 0, p.lse[row] = 0;
    return;
  }
  const float* logits = p.logits + row * p.V;
  Highest highest{-INFINITY, p.V};
  for (int64_t v = threadIdx.x; v < p.V; v += kThreads) highest.join(logits[v], v);
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    const float other = __shfl_xor_sync(0xffffffffu, highest.value, offset);
    highest.join(other, __shfl_xor_sync(0xffffffffu, highest.idx, offset));
  }
  if (threadIdx.x % 32 == 0) values[threadIdx.x / 32] = highest.value, indices[threadIdx.x / 32] = highest.idx;
  __syncthreads();
  for (int warp = 0; warp < kThreads / 32; ++warp) highest.join(values[warp], indices[warp]);
  float sum = 0;
  for (int64_t v = threadIdx.x; v < p.V; v += kThreads) sum += expf(logits[v] - highest.value);
  const float log_sum = logf(device::block_sum(sum, scratch));
  if (threadIdx.x != 0) return;
  if (p.prediction) p.prediction[row] = min(highest.idx, p.V - 1);  // all NaN: the last, which exists
  const bool has_target = target >= 0 && target < p.V;              // the caller checks targets on the host
  p.token_loss[row] = has_target ? highest.value - logits[target] + log_sum : target < 0 ? 0.0f : __int_as_float(0x7fffffff);
  p.lse[row] = has_target ? highest.value + log_sum : 0.0f;
}

struct GradientParams {
  LossRows rows;
  LossGradient to;
};

template <class T>
__global__ void __launch_bounds__(kThreads) gradient_kernel(GradientParams p) {
  const int64_t row = blockIdx.x, V = p.rows.V, target = p.rows.targets[row];
  const float* logits = p.rows.logits + row * V;
  T* d_logits = static_cast<T*>(p.to.d_logits) + row * V;
  const float g = (p.to.d_loss ? *p.to.d_loss * *p.to.scale : 0.0f) + (p.to.d_token_loss ? p.to.d_token_loss[row] : 0.0f);
  const float lse = p.rows.lse[row];
  for (int64_t v = threadIdx.x; v < V; v += kThreads) {
    const float d = target < 0 ? 0.0f : g * (expf(logits[v] - lse) - (v == target ? 1.0f : 0.0f));
    d_logits[v] = device::from_float<T>(d);
  }
}

struct TotalParams {
  const float* token_loss;  // [N]
  const int64_t* targets;   // [N]
  float* loss;              // []
  float* scale;             // []
  int64_t N;
  double denominator;
};

__global__ void __launch_bounds__(kTotalThreads) total_kernel(TotalParams p) {
  __shared__ double sums[kTotalThreads];
  __shared__ int64_t counts[kTotalThreads];
  double sum = 0;
  int64_t count = 0;
  for (int64_t n = threadIdx.x; n < p.N; n += kTotalThreads) {
    sum += static_cast<double>(p.token_loss[n]);
    count += p.targets[n] >= 0;
  }
  sums[threadIdx.x] = sum;
  counts[threadIdx.x] = count;
  for (int half = kTotalThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) {
      sums[threadIdx.x] += sums[threadIdx.x + half];
      counts[threadIdx.x] += counts[threadIdx.x + half];
    }
  }
  if (threadIdx.x != 0) return;
  const double denominator = p.denominator != 0 ? p.denominator : static_cast<double>(counts[0] > 1 ? counts[0] : 1);
  *p.loss = static_cast<float>(sums[0] / denominator);
  *p.scale = static_cast<float>(1 / denominator);
}

}  // namespace

void launch_losses(Context& ctx, const LossRows& rows) {
  launch(ctx.stream(), "linear_cross_entropy_losses", &loss_kernel, {.grid = static_cast<unsigned>(rows.rows), .block = kThreads}, rows);
}

void launch_loss_gradients(Context& ctx, const LossRows& rows, const LossGradient& gradient) {
  const auto kernel = gradient.dtype == DType::bf16 ? &gradient_kernel<device::bf16> : &gradient_kernel<float>;
  launch(ctx.stream(), "linear_cross_entropy_gradients", kernel, {.grid = static_cast<unsigned>(rows.rows), .block = kThreads},
         GradientParams{rows, gradient});
}

void launch_total_loss(Context& ctx, const Tensor& token_loss, const Tensor& targets, double denominator, const Tensor& loss, const Tensor& scale) {
  const TotalParams params{token_loss.data<float>(), targets.data<int64_t>(), loss.data<float>(), scale.data<float>(), targets.numel(), denominator};
  launch(ctx.stream(), "linear_cross_entropy_total", &total_kernel, {.grid = 1, .block = kTotalThreads}, params);
}

}  // namespace braid::cuda
