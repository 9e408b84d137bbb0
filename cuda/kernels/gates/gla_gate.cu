#include <cfloat>

#include "cuda/device/overlap.h"
#include "cuda/device/scalar.h"
#include "cuda/kernels/operands.h"
#include "cuda/runtime/check.h"
#include "ops/functions.h"
#include "ops/gates.h"

namespace braid {
namespace {

struct GlaParams {
  const void* x;             // [count]
  const float* d_log_decay;  // [count], backward
  float* log_decay;          // [count], forward
  void* d_x;                 // [count], backward
  int64_t count;
  float factor, least;  // 1 / normalizer, clamp_min
};

// log_decay = max(logsigmoid(x) / normalizer, clamp_min); `width` neighbours a thread.
template <class T, int width>
__global__ void __launch_bounds__(256) gla_gate_forward(GlaParams p) {
  device::begin_overlapping();
  const int64_t step = int64_t{gridDim.x} * blockDim.x * width;
  for (int64_t i = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * width; i < p.count; i += step) {
    float x[width];
    device::load(static_cast<const T*>(p.x) + i, x);
#pragma unroll
    for (int j = 0; j < width; ++j) {
      const float decay = functions::log_sigmoid(x[j]) * p.factor;
      x[j] = decay < p.least ? p.least : decay;  // NaN stays
    }
    device::store(p.log_decay + i, x);
  }
}

// d_x = d_log_decay sigmoid(−x) / normalizer, 0 where clamped
template <class T, int width>
__global__ void __launch_bounds__(256) gla_gate_backward(GlaParams p) {
  device::begin_overlapping();
  const int64_t step = int64_t{gridDim.x} * blockDim.x * width;
  for (int64_t i = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * width; i < p.count; i += step) {
    float x[width], d[width];
    device::load(static_cast<const T*>(p.x) + i, x);
    device::load(p.d_log_decay + i, d);
#pragma unroll
    for (int j = 0; j < width; ++j) {
      const bool clamped = functions::log_sigmoid(x[j]) * p.factor < p.least;
      d[j] = clamped ? 0.0f : d[j] * functions::sigmoid(-x[j]) * p.factor;
    }
    device::store(static_cast<T*>(p.d_x) + i, d);
  }
}

using Kernel = void (*)(GlaParams);

/// The kernel for x's dtype: `wide` where packs of 4 are aligned and leave no rest.
void run(Context& ctx, std::string_view name, DType dtype, bool wide, const Kernel (&kernels)[2][2], const GlaParams& params) {
  const int64_t width = wide ? 4 : 1, blocks = (params.count / width + 255) / 256;
  cuda::launch(ctx.stream(), name, kernels[dtype == DType::bf16][wide],
               {.grid = static_cast<unsigned>(blocks < 4224 ? blocks : 4224), .block = 256, .overlaps = true}, params);
}

GlaParams params_of(const GlaGate::Attrs& attrs, const Tensor& x) {
  return {.x = x.raw(),
          .count = x.numel(),
          .factor = static_cast<float>(1 / attrs.normalizer),
          .least = attrs.clamp_min ? static_cast<float>(*attrs.clamp_min) : -FLT_MAX};
}

using cuda::aligned16;

}  // namespace

GlaGate::Saved GlaGate::forward_cuda(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out) {
  cuda::require_kernel_dtype(name, in.x.dtype());
  static constexpr Kernel kKernels[2][2] = {{&gla_gate_forward<float, 1>, &gla_gate_forward<float, 4>},
                                            {&gla_gate_forward<device::bf16, 1>, &gla_gate_forward<device::bf16, 4>}};
  GlaParams params = params_of(attrs, in.x);
  params.log_decay = out.log_decay.data<float>();
  run(ctx, "gla_gate_forward", in.x.dtype(), params.count % 4 == 0 && aligned16(in.x) && aligned16(out.log_decay), kKernels, params);
  return {in.x};
}

void GlaGate::backward_cuda(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in) {
  static constexpr Kernel kKernels[2][2] = {{&gla_gate_backward<float, 1>, &gla_gate_backward<float, 4>},
                                            {&gla_gate_backward<device::bf16, 1>, &gla_gate_backward<device::bf16, 4>}};
  if (!d_in.x) return;
  GlaParams params = params_of(attrs, saved.x);
  params.d_log_decay = d_out.log_decay.data<float>();
  params.d_x = d_in.x.raw();
  const bool aligned = aligned16(saved.x) && aligned16(d_out.log_decay) && aligned16(d_in.x);
  run(ctx, "gla_gate_backward", saved.x.dtype(), params.count % 4 == 0 && aligned, kKernels, params);
}

}  // namespace braid
