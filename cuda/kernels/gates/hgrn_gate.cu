#include "cuda/device/math.h"
#include "cuda/device/overlap.h"
#include "cuda/device/scalar.h"
#include "cuda/kernels/gates/columns.h"
#include "cuda/kernels/norms/column_sums.h"
#include "ops/gates.h"

namespace braid {
namespace {

constexpr float kMaxLogInverse = 80;  // 1/a counts as at most e^80 (ops/gates.h)
constexpr float kMostExponent = 87;   // e^87 is still finite
constexpr int kWidth = 4;

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

/// e^−|z| and the sigmoids of z and −z, without cancellation.
struct Sigmoids {
  float small, on, off;
  __device__ explicit Sigmoids(float z) {
    small = device::fast_exp(-fabsf(z));
    const float larger = device::fast_reciprocal(1.0f + small), smaller = small * larger;
    on = z < 0 ? smaller : larger, off = z < 0 ? larger : smaller;
  }
};

template <int width>
__device__ inline void load_bound(const float* lower_bound, int64_t d, float (&bound)[width]) {
#pragma unroll
  for (int c = 0; c < width; ++c) bound[c] = lower_bound ? lower_bound[d + c] : 0.0f;
}

// log_decay = log(lb + (1 − lb) sigmoid(f)),   input_gate = (1 − lb) sigmoid(−f)
template <class T, int width>
__global__ void __launch_bounds__(256) hgrn_gate_forward(HgrnParams p) {
  device::begin_overlapping();
  using Packed = device::Pack<T, width>;
  const int64_t d = cuda::column_of_thread(p.plan);
  if (d >= p.plan.D) return;
  float bound[width];
  load_bound(p.lower_bound, d, bound);
  const auto fetch = [&](int64_t i) { return *reinterpret_cast<const Packed*>(static_cast<const T*>(p.f) + i); };
  cuda::walk_column<4>(p.plan, d, fetch, [&](const Packed& f, int64_t i) {
    float log_decay[width], gate[width];
#pragma unroll
    for (int c = 0; c < width; ++c) {
      const float z = device::to_float(f.at[c]), lb = bound[c];
      const Sigmoids s(z);
      gate[c] = (1.0f - lb) * s.off;
      // Without a bound the sigmoid may underflow; with one, a ≥ 1/2: 1 − a is known to full relative precision.
      const float log1p = device::fast_log1p(lb > 0 ? -fminf(gate[c], 0.5f) : s.small);
      log_decay[c] = lb > 0 ? (gate[c] > 0.5f ? __logf(fmaf(1.0f - lb, s.on, lb)) : log1p) : fminf(z, 0.0f) - log1p;
    }
    device::store(p.log_decay + i, log_decay);
    device::store(static_cast<T*>(p.input_gate) + i, gate);
  });
}

template <class T, int width>
struct BackwardOperands {
  device::Pack<T, width> f, d_gate;
  device::Pack<float, width> log_a, d_log;
};

// d_f = s(−f) (d_log r − d_gate (1 − lb) s),   d_lb = Σ s(−f) (d_log / a − d_gate),   r = (1 − lb) s / a, 1 without a bound
template <class T, int width>
__global__ void __launch_bounds__(256) hgrn_gate_backward(HgrnParams p) {
  device::begin_overlapping();
  using Operands = BackwardOperands<T, width>;
  const int64_t d = cuda::column_of_thread(p.plan);
  if (d >= p.plan.D) return;
  float bound[width], d_bound[width] = {};
  load_bound(p.lower_bound, d, bound);
  const auto fetch = [&](int64_t i) {
    Operands result = {};
    result.f = *reinterpret_cast<const device::Pack<T, width>*>(static_cast<const T*>(p.f) + i);
    result.log_a = *reinterpret_cast<const device::Pack<float, width>*>(p.log_decay + i);
    if (p.d_log_decay) result.d_log = *reinterpret_cast<const device::Pack<float, width>*>(p.d_log_decay + i);
    if (p.d_input_gate) result.d_gate = *reinterpret_cast<const device::Pack<T, width>*>(static_cast<const T*>(p.d_input_gate) + i);
    return result;
  };
  const int64_t partial = cuda::walk_column<2>(p.plan, d, fetch, [&](const Operands& at, int64_t i) {
    float d_f[width];
#pragma unroll
    for (int c = 0; c < width; ++c) {
      const Sigmoids s(device::to_float(at.f.at[c]));
      const float log_a = at.log_a.at[c], d_log = at.d_log.at[c], d_gate = device::to_float(at.d_gate.at[c]), on = (1.0f - bound[c]) * s.on;
      const float share = bound[c] > 0 ? fminf(on * device::fast_exp(fminf(-log_a, kMostExponent)), 1.0f) : 1.0f;
      d_f[c] = s.off * (d_log * share - d_gate * on);
      d_bound[c] += s.off * (d_log * device::fast_exp(fminf(-log_a, kMaxLogInverse)) - d_gate);
    }
    if (p.d_f) device::store(static_cast<T*>(p.d_f) + i, d_f);
  });
  if (p.partials) device::store(p.partials + partial * p.plan.D + d, d_bound);
}

using cuda::address;
using cuda::address_of;
using cuda::aligned16;

using Kernel = void (*)(HgrnParams);

}  // namespace

HgrnGate::Saved HgrnGate::forward_cuda(Context& ctx, const Inputs& in, const Attrs&, Outputs& out) {
  static constexpr Kernel kKernels[2][2] = {{&hgrn_gate_forward<float, 1>, &hgrn_gate_forward<float, kWidth>},
                                            {&hgrn_gate_forward<device::bf16, 1>, &hgrn_gate_forward<device::bf16, kWidth>}};
  cuda::require_kernel_dtype(name, in.f.dtype());
  const bool wide = in.f.size(1) % kWidth == 0 && aligned16(in.f) && aligned16(out.log_decay) && aligned16(out.input_gate);
  const HgrnParams params{.plan = cuda::ColumnPlan(in.f.size(0), in.f.size(1), wide ? kWidth : 1),
                          .f = in.f.raw(),
                          .lower_bound = address_of<float>(in.lower_bound),
                          .log_decay = out.log_decay.data<float>(),
                          .input_gate = out.input_gate.raw()};
  cuda::launch(ctx.stream(), "hgrn_gate_forward", kKernels[in.f.dtype() == DType::bf16][wide], params.plan.config(), params);
  return {in.f, in.lower_bound, out.log_decay};
}

void HgrnGate::backward_cuda(Context& ctx, const Saved& saved, const Attrs&, const Outputs& d_out, Inputs& d_in) {
  static constexpr Kernel kKernels[2][2] = {{&hgrn_gate_backward<float, 1>, &hgrn_gate_backward<float, kWidth>},
                                            {&hgrn_gate_backward<device::bf16, 1>, &hgrn_gate_backward<device::bf16, kWidth>}};
  const bool wide = saved.f.size(1) % kWidth == 0 && aligned16(saved.f) && aligned16(saved.log_decay) && aligned16(d_out.log_decay) &&
                    aligned16(d_out.input_gate) && aligned16(d_in.f);
  const cuda::ColumnPlan plan(saved.f.size(0), saved.f.size(1), wide ? kWidth : 1);
  const Tensor partials = d_in.lower_bound ? Tensor::empty(ctx, {plan.num_partials(), plan.D}, DType::f32) : Tensor{};
  const HgrnParams params{.plan = plan,
                          .f = saved.f.raw(),
                          .lower_bound = address_of<float>(saved.lower_bound),
                          .d_log_decay = address_of<float>(d_out.log_decay),
                          .d_input_gate = address(d_out.input_gate),
                          .log_decay = saved.log_decay.data<float>(),
                          .d_f = address(d_in.f),
                          .partials = address_of<float>(partials)};
  cuda::launch(ctx.stream(), "hgrn_gate_backward", kKernels[saved.f.dtype() == DType::bf16][wide], plan.config(), params);
  if (d_in.lower_bound) cuda::sum_partials(ctx, partials, d_in.lower_bound);
}

}  // namespace braid
