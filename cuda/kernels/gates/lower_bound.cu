#include "cuda/device/overlap.h"
#include "cuda/device/scalar.h"
#include "cuda/kernels/operands.h"
#include "cuda/runtime/check.h"
#include "ops/gates.h"

namespace braid {
namespace {

struct BoundParams {
  const void* weights;   // [L, D], forward
  float* probabilities;  // [L, D]: written by forward, read by backward
  float* bound;          // [D]: likewise
  const float* d_bound;  // [D], backward
  void* d_weights;       // [L, D], backward
  int64_t L, D, layer;
};

// p = softmax(weights) over layers, bound = Σ_{1 ≤ l ≤ layer} p_l; a thread has one channel.
template <class T>
__global__ void __launch_bounds__(128) lower_bound_forward(BoundParams p) {
  device::begin_overlapping();
  const int64_t d = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (d >= p.D) return;
  const T* weights = static_cast<const T*>(p.weights) + d;
  float highest = device::to_float(weights[0]), sum = 0, bound = 0;
  for (int64_t l = 1; l < p.L; ++l) highest = fmaxf(highest, device::to_float(weights[l * p.D]));
  for (int64_t l = 0; l < p.L; ++l) sum += expf(device::to_float(weights[l * p.D]) - highest);
  for (int64_t l = 0; l < p.L; ++l) {
    const float probability = expf(device::to_float(weights[l * p.D]) - highest) / sum;
    p.probabilities[l * p.D + d] = probability;
    if (l >= 1 && l <= p.layer) bound += probability;
  }
  p.bound[d] = bound;
}

// d_weights_l = p_l ([1 ≤ l ≤ layer] − bound) d_bound
template <class T>
__global__ void __launch_bounds__(128) lower_bound_backward(BoundParams p) {
  device::begin_overlapping();
  const int64_t d = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (d >= p.D) return;
  const float bound = p.bound[d], d_bound = p.d_bound[d];
  for (int64_t l = 0; l < p.L; ++l) {
    const float inside = l >= 1 && l <= p.layer ? 1.0f : 0.0f;
    const float d_weight = p.layer == 0 ? 0.0f : p.probabilities[l * p.D + d] * (inside - bound) * d_bound;
    static_cast<T*>(p.d_weights)[l * p.D + d] = device::from_float<T>(d_weight);
  }
}

cuda::LaunchConfig config_for(int64_t D) { return {.grid = static_cast<unsigned>((D + 127) / 128), .block = 128, .overlaps = true}; }

}  // namespace

LowerBound::Saved LowerBound::forward_cuda(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out) {
  cuda::require_kernel_dtype(name, in.weights.dtype());
  Saved saved{Tensor::empty(ctx, in.weights.shape(), DType::f32), out.bound};
  const BoundParams params{.weights = in.weights.raw(),
                           .probabilities = saved.probabilities.data<float>(),
                           .bound = out.bound.data<float>(),
                           .L = in.weights.size(0),
                           .D = in.weights.size(1),
                           .layer = attrs.layer};
  const auto kernel = in.weights.dtype() == DType::bf16 ? &lower_bound_forward<device::bf16> : &lower_bound_forward<float>;
  cuda::launch(ctx.stream(), "lower_bound_forward", kernel, config_for(params.D), params);
  return saved;
}

void LowerBound::backward_cuda(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in) {
  if (!d_in.weights) return;
  const BoundParams params{.probabilities = saved.probabilities.data<float>(),
                           .bound = saved.bound.data<float>(),
                           .d_bound = d_out.bound.data<float>(),
                           .d_weights = d_in.weights.raw(),
                           .L = saved.probabilities.size(0),
                           .D = saved.probabilities.size(1),
                           .layer = attrs.layer};
  const auto kernel = d_in.weights.dtype() == DType::bf16 ? &lower_bound_backward<device::bf16> : &lower_bound_backward<float>;
  cuda::launch(ctx.stream(), "lower_bound_backward", kernel, config_for(params.D), params);
}

}  // namespace braid
