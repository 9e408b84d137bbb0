#include "cuda/device/overlap.h"
#include "cuda/device/scalar.h"
#include "cuda/kernels/gates/columns.h"
#include "cuda/kernels/norms/column_sums.h"
#include "ops/functions.h"
#include "ops/gates.h"

namespace braid {
namespace {

struct GdnParams {
  cuda::ColumnPlan plan;     // D = HV
  const void* a;             // [N, HV]
  const float* A_log;        // [HV]
  const float* dt_bias;      // [HV]
  const float* d_log_decay;  // [N, HV], backward
  float* log_decay;          // [N, HV], forward
  void* d_a;                 // [N, HV] or null
  float* d_A_log;            // partial sums [strips · groups, HV], or null
  float* d_dt_bias;          // partial sums [strips · groups, HV], or null
};

/// There are few heads: what takes time is waiting for operands, so many are fetched at once.
constexpr int kAhead = 8;

template <class T>
struct Operands {
  T a;
  float d_log_decay;
};

// log_decay = −exp(A_log) softplus(a + dt_bias)
template <class T>
__global__ void __launch_bounds__(256) gdn_gate_forward(GdnParams p) {
  device::begin_overlapping();
  const int64_t h = cuda::column_of_thread(p.plan);
  if (h >= p.plan.D) return;
  const float rate = -expf(p.A_log[h]), bias = p.dt_bias[h];
  const auto fetch = [&](int64_t i) { return static_cast<const T*>(p.a)[i]; };
  cuda::walk_column<kAhead>(p.plan, h, fetch, [&](T a, int64_t i) { p.log_decay[i] = rate * functions::softplus(device::to_float(a) + bias); });
}

// d_z = −d_log exp(A_log) sigmoid(z) with z = a + dt_bias:   d_a = d_z,   d_dt_bias = Σ d_z,   d_A_log = Σ d_log log_decay
template <class T>
__global__ void __launch_bounds__(256) gdn_gate_backward(GdnParams p) {
  device::begin_overlapping();
  const int64_t h = cuda::column_of_thread(p.plan);
  if (h >= p.plan.D) return;
  const float rate = -expf(p.A_log[h]), bias = p.dt_bias[h];
  float d_rate = 0, d_bias = 0;
  const auto fetch = [&](int64_t i) { return Operands<T>{static_cast<const T*>(p.a)[i], p.d_log_decay[i]}; };
  const int64_t partial = cuda::walk_column<kAhead>(p.plan, h, fetch, [&](const Operands<T>& at, int64_t i) {
    const float z = device::to_float(at.a) + bias, d = at.d_log_decay * rate, d_z = d * functions::sigmoid(z);
    d_rate += d * functions::softplus(z);
    d_bias += d_z;
    if (p.d_a) static_cast<T*>(p.d_a)[i] = device::from_float<T>(d_z);
  });
  if (p.d_A_log) p.d_A_log[partial * p.plan.D + h] = d_rate;
  if (p.d_dt_bias) p.d_dt_bias[partial * p.plan.D + h] = d_bias;
}

}  // namespace

GdnGate::Saved GdnGate::forward_cuda(Context& ctx, const Inputs& in, const Attrs&, Outputs& out) {
  cuda::require_kernel_dtype(name, in.a.dtype());
  const GdnParams params{.plan = cuda::ColumnPlan(in.a.size(0), in.a.size(1)),
                         .a = in.a.raw(),
                         .A_log = in.A_log.data<float>(),
                         .dt_bias = in.dt_bias.data<float>(),
                         .log_decay = out.log_decay.data<float>()};
  const auto kernel = in.a.dtype() == DType::bf16 ? &gdn_gate_forward<device::bf16> : &gdn_gate_forward<float>;
  cuda::launch(ctx.stream(), "gdn_gate_forward", kernel, params.plan.config(), params);
  return {in.a, in.A_log, in.dt_bias};
}

void GdnGate::backward_cuda(Context& ctx, const Saved& saved, const Attrs&, const Outputs& d_out, Inputs& d_in) {
  const cuda::ColumnPlan plan(saved.a.size(0), saved.a.size(1));
  const auto partials_for = [&](const Tensor& wanted) { return wanted ? Tensor::empty(ctx, {plan.num_partials(), plan.D}, DType::f32) : Tensor{}; };
  const Tensor d_A_log = partials_for(d_in.A_log), d_dt_bias = partials_for(d_in.dt_bias);
  const GdnParams params{.plan = plan,
                         .a = saved.a.raw(),
                         .A_log = saved.A_log.data<float>(),
                         .dt_bias = saved.dt_bias.data<float>(),
                         .d_log_decay = d_out.log_decay.data<float>(),
                         .d_a = cuda::address(d_in.a),
                         .d_A_log = cuda::address_of<float>(d_A_log),
                         .d_dt_bias = cuda::address_of<float>(d_dt_bias)};
  const auto kernel = saved.a.dtype() == DType::bf16 ? &gdn_gate_backward<device::bf16> : &gdn_gate_backward<float>;
  cuda::launch(ctx.stream(), "gdn_gate_backward", kernel, plan.config(), params);
  if (d_in.A_log) cuda::sum_partials(ctx, d_A_log, d_in.A_log);
  if (d_in.dt_bias) cuda::sum_partials(ctx, d_dt_bias, d_in.dt_bias);
}

}  // namespace braid
