#include <cfloat>

#include "cuda/device/scalar.h"
#include "cuda/kernels/gates/columns.h"
#include "cuda/kernels/norms/column_sums.h"
#include "ops/functions.h"
#include "ops/gates.h"

namespace braid {
namespace {

constexpr float kMaxLogInverse = 80;  // 1/a counts as at most e^80 (ops/gates.h)

struct HgrnParams {
  cuda::ColumnPlan plan;
  const void* f;             // [N, D]
  const float* lower_bound;  // [D] or null
  const float* d_log_decay;  // [N, D] or null
  const void* d_input_gate;  // [N, D] or null
  float* log_decay;          // [N, D]: written by forward, read by backward
  void* input_gate;          // [N, D]
  void* d_f;                 // [N, D] or null
  float* partials;           // [strips · groups, D] of d_lower_bound, or null
};

/// log lb and log(1 − lb), −infinity as a number that arithmetic may be done with.
struct Bound {
  float value = 0, log_value = -FLT_MAX / 8, log_rest = 0;
  __device__ Bound(const float* lower_bound, int64_t d) {
    if (!lower_bound) return;
    value = lower_bound[d];
    if (value > 0) log_value = logf(value);
    log_rest = value < 1 ? log1pf(-value) : -FLT_MAX / 8;
  }
};

// log_decay = log(lb + (1 − lb) sigmoid(f)),   input_gate = (1 − lb) sigmoid(−f)
template <class T>
__global__ void __launch_bounds__(256) hgrn_gate_forward(HgrnParams p) {
  const int64_t d = cuda::column_of_thread(p.plan);
  if (d >= p.plan.D) return;
  const Bound bound(p.lower_bound, d);
  cuda::walk_column(p.plan, d, [&](int64_t i) {
    const float z = device::to_float(static_cast<const T*>(p.f)[i]), gate = (1.0f - bound.value) * functions::sigmoid(-z);
    // a ≥ 1/2: 1 − a is known to full relative precision; else a sum of exponentials, because the sigmoid may underflow.
    const float rest = bound.log_rest + functions::log_sigmoid(z);
    const float small = fmaxf(bound.log_value, rest) + log1pf(expf(-fabsf(bound.log_value - rest)));
    p.log_decay[i] = gate > 0.5f ? small : p.lower_bound ? log1pf(-gate) : rest;
    static_cast<T*>(p.input_gate)[i] = device::from_float<T>(gate);
  });
}

// d_f = s(−f) (d_log r − d_gate (1 − lb) s),   d_lb = Σ s(−f) (d_log / a − d_gate),   r = (1 − lb) s / a
template <class T>
__global__ void __launch_bounds__(256) hgrn_gate_backward(HgrnParams p) {
  const int64_t d = cuda::column_of_thread(p.plan);
  if (d >= p.plan.D) return;
  const Bound bound(p.lower_bound, d);
  float d_bound = 0;
  const int64_t partial = cuda::walk_column(p.plan, d, [&](int64_t i) {
    const float z = device::to_float(static_cast<const T*>(p.f)[i]), log_a = p.log_decay[i], off = functions::sigmoid(-z);
    const float share = expf(fminf(bound.log_rest + functions::log_sigmoid(z) - log_a, 0.0f));
    const float d_log = p.d_log_decay ? p.d_log_decay[i] : 0.0f;
    const float d_gate = p.d_input_gate ? device::to_float(static_cast<const T*>(p.d_input_gate)[i]) : 0.0f;
    if (p.d_f) {
      const float d_f = off * (d_log * share - d_gate * (1.0f - bound.value) * functions::sigmoid(z));
      static_cast<T*>(p.d_f)[i] = device::from_float<T>(d_f);
    }
    d_bound += off * (d_log * expf(fminf(-log_a, kMaxLogInverse)) - d_gate);
  });
  if (p.partials) p.partials[partial * p.plan.D + d] = d_bound;
}

using cuda::address;
using cuda::address_of;

}  // namespace

HgrnGate::Saved HgrnGate::forward_cuda(Context& ctx, const Inputs& in, const Attrs&, Outputs& out) {
  cuda::require_kernel_dtype(name, in.f.dtype());
  const HgrnParams params{.plan = cuda::ColumnPlan(in.f.size(0), in.f.size(1)),
                          .f = in.f.raw(),
                          .lower_bound = address_of<float>(in.lower_bound),
                          .log_decay = out.log_decay.data<float>(),
                          .input_gate = out.input_gate.raw()};
  const auto kernel = in.f.dtype() == DType::bf16 ? &hgrn_gate_forward<device::bf16> : &hgrn_gate_forward<float>;
  cuda::launch(ctx.stream(), "hgrn_gate_forward", kernel, params.plan.config(), params);
  return {in.f, in.lower_bound, out.log_decay};
}

void HgrnGate::backward_cuda(Context& ctx, const Saved& saved, const Attrs&, const Outputs& d_out, Inputs& d_in) {
  const cuda::ColumnPlan plan(saved.f.size(0), saved.f.size(1));
  const Tensor partials = d_in.lower_bound ? Tensor::empty(ctx, {plan.num_partials(), plan.D}, DType::f32) : Tensor{};
  const HgrnParams params{.plan = plan,
                          .f = saved.f.raw(),
                          .lower_bound = address_of<float>(saved.lower_bound),
                          .d_log_decay = address_of<float>(d_out.log_decay),
                          .d_input_gate = address(d_out.input_gate),
                          .log_decay = saved.log_decay.data<float>(),
                          .d_f = address(d_in.f),
                          .partials = address_of<float>(partials)};
  const auto kernel = saved.f.dtype() == DType::bf16 ? &hgrn_gate_backward<device::bf16> : &hgrn_gate_backward<float>;
  cuda::launch(ctx.stream(), "hgrn_gate_backward", kernel, plan.config(), params);
  if (d_in.lower_bound) cuda::sum_partials(ctx, partials, d_in.lower_bound);
}

}  // namespace braid
