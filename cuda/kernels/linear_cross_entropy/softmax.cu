#include "cuda/device/math.h"
#include "cuda/device/scalar.h"
#include "cuda/kernels/linear_cross_entropy/softmax.h"
#include "cuda/runtime/check.h"

namespace braid::cuda {
namespace {

constexpr int kThreads = 256, kTotalThreads = 1024, kAhead = 4;

/// The largest logit seen, where it is first, and Σ exp(logit − largest); the smaller index of equals wins.
struct Softmax {
  float highest = -INFINITY, sum = 0;
  int64_t idx = 0;

  /// What is subtracted in exponents: no difference of infinities.
  __device__ static float base(float x) { return x == -INFINITY ? 0.0f : x; }

  template <int width>
  __device__ void take(const float (&logits)[width], int64_t first_idx) {
    float most = logits[0];
    int where = 0;
#pragma unroll
    for (int i = 1; i < width; ++i)
      if (logits[i] > most) most = logits[i], where = i;
    if (most > highest) {
      sum *= device::fast_exp(highest - base(most));
      highest = most, idx = first_idx + where;
    }
#pragma unroll
    for (int i = 0; i < width; ++i) sum += device::fast_exp(logits[i] - base(highest));
  }
  __device__ void join(const Softmax& other) {
    const float most = fmaxf(highest, other.highest);
    sum = sum * device::fast_exp(highest - base(most)) + other.sum * device::fast_exp(other.highest - base(most));
    if (other.highest > highest || (other.highest == highest && other.idx < idx)) idx = other.idx;
    highest = most;
  }
};

// A block has one row, read once; what threads, lanes and warps saw is joined in a fixed order.
template <int width>
__global__ void __launch_bounds__(kThreads) loss_kernel(LossRows p) {
  __shared__ float highests[kThreads / 32], sums[kThreads / 32];
  __shared__ int64_t indices[kThreads / 32];
  const int64_t row = blockIdx.x, target = p.targets[row];
  if (target < 0 && !p.prediction) {
    if (threadIdx.x == 0) p.token_loss[row] = 0, p.lse[row] = 0;
    return;
  }
  const float* logits = p.logits + row * p.V;
  Softmax all;
  constexpr int64_t kStep = kThreads * width;
  for (int64_t first = threadIdx.x * width; first < p.V; first += kAhead * kStep) {
    float ahead[kAhead][width];
#pragma unroll
    for (int i = 0; i < kAhead; ++i)
      if (first + i * kStep < p.V) device::load(logits + first + i * kStep, ahead[i]);
#pragma unroll
    for (int i = 0; i < kAhead; ++i)
      if (first + i * kStep < p.V) all.take(ahead[i], first + i * kStep);
  }
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    Softmax other;
    other.highest = __shfl_down_sync(0xffffffffu, all.highest, offset);
    other.sum = __shfl_down_sync(0xffffffffu, all.sum, offset);
    other.idx = __shfl_down_sync(0xffffffffu, all.idx, offset);
    all.join(other);
  }
  const int warp = threadIdx.x / 32;
  if (threadIdx.x % 32 == 0) highests[warp] = all.highest, sums[warp] = all.sum, indices[warp] = all.idx;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int i = 1; i < kThreads / 32; ++i) {
    Softmax other;
    other.highest = highests[i], other.sum = sums[i], other.idx = indices[i];
    all.join(other);
  }
  const float log_sum = logf(all.sum);
  if (p.prediction) p.prediction[row] = min(all.idx, p.V - 1);  // all NaN: the first, which exists
  const bool has_target = target >= 0 && target < p.V;          // the caller checks targets on the host
  p.token_loss[row] = has_target ? all.highest - logits[target] + log_sum : target < 0 ? 0.0f : __int_as_float(0x7fffffff);
  p.lse[row] = has_target ? all.highest + log_sum : 0.0f;
}

struct GradientParams {
  LossRows rows;
  LossGradient to;
};

template <class T, int width>
__global__ void __launch_bounds__(kThreads) gradient_kernel(GradientParams p) {
  const int64_t row = blockIdx.x, V = p.rows.V, target = p.rows.targets[row];
  const float* logits = p.rows.logits + row * V;
  T* d_logits = static_cast<T*>(p.to.d_logits) + row * V;
  const float g = (p.to.scale ? *p.to.scale * (p.to.d_loss ? *p.to.d_loss : 1.0f) : 0.0f) + (p.to.d_token_loss ? p.to.d_token_loss[row] : 0.0f);
  const float lse = p.rows.lse[row];
  constexpr int64_t kStep = kThreads * width;
  for (int64_t first = threadIdx.x * width; first < V; first += kAhead * kStep) {
    float ahead[kAhead][width];
#pragma unroll
    for (int i = 0; i < kAhead; ++i)
      if (first + i * kStep < V) device::load(logits + first + i * kStep, ahead[i]);
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int64_t at = first + i * kStep;
      if (at >= V) break;
#pragma unroll
      for (int j = 0; j < width; ++j) ahead[i][j] = target < 0 ? 0.0f : g * (device::fast_exp(ahead[i][j] - lse) - (at + j == target ? 1.0f : 0.0f));
      device::store(d_logits + at, ahead[i]);
    }
  }
}

struct TotalParams {
  const float* token_loss;  // [N]
  const int64_t* targets;   // [N]
  float* loss;              // []
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
}

}  // namespace

void launch_losses(Context& ctx, const LossRows& rows) {
  const auto kernel = rows.V % 4 == 0 ? &loss_kernel<4> : &loss_kernel<1>;
  launch(ctx.stream(), "linear_cross_entropy_losses", kernel, {.grid = static_cast<unsigned>(rows.rows), .block = kThreads}, rows);
}

void launch_loss_gradients(Context& ctx, const LossRows& rows, const LossGradient& gradient) {
  const bool wide = rows.V % 4 == 0;
  const auto kernel = gradient.dtype == DType::bf16 ? (wide ? &gradient_kernel<device::bf16, 4> : &gradient_kernel<device::bf16, 1>)
                                                    : (wide ? &gradient_kernel<float, 4> : &gradient_kernel<float, 1>);
  launch(ctx.stream(), "linear_cross_entropy_gradients", kernel, {.grid = static_cast<unsigned>(rows.rows), .block = kThreads},
         GradientParams{rows, gradient});
}

void launch_total_loss(Context& ctx, const Tensor& token_loss, const Tensor& targets, double denominator, const Tensor& loss) {
  const TotalParams params{token_loss.data<float>(), targets.data<int64_t>(), loss.data<float>(), targets.numel(), denominator};
  launch(ctx.stream(), "linear_cross_entropy_total", &total_kernel, {.grid = 1, .block = kTotalThreads}, params);
}

}  // namespace braid::cuda
