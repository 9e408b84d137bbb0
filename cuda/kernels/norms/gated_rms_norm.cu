#include "cuda/kernels/norms/column_sums.h"
#include "cuda/kernels/norms/row_dispatch.h"
#include "cuda/kernels/operands.h"
#include "cuda/runtime/check.h"
#include "ops/functions.h"
#include "ops/gated_rms_norm.h"

namespace braid {
namespace {

struct ForwardParams {
  const void* x;        // [rows, D]
  const void* gate;     // [rows, D]
  const float* weight;  // [D]
  void* y;              // [rows, D]
  float* rstd;          // [rows]
  int64_t rows, D;
  float eps;
  bool swish;
};

// y = x · r · weight · act(gate)
template <class T, class Plan>
__global__ void __launch_bounds__(Plan::kThreads) gated_rms_norm_forward(ForwardParams p) {
  __shared__ float scratch[32];
  using Part = device::RowPart<Plan>;
  const int lane = threadIdx.x % Plan::kGroup;
  Part weight;
  weight.load(p.weight, p.D, lane);
  for (int64_t first = int64_t{blockIdx.x} * Plan::kRowsPerBlock; first < p.rows; first += int64_t{gridDim.x} * Plan::kRowsPerBlock) {
    const int64_t row = first + threadIdx.x / Plan::kGroup;
    const bool live = row < p.rows;  // every thread stays for the row sums
    Part part, gate;
    part.load(live ? static_cast<const T*>(p.x) + row * p.D : nullptr, p.D, lane);
    gate.load(live ? static_cast<const T*>(p.gate) + row * p.D : nullptr, p.D, lane);
    float square = 0;
    Part::each([&](int i, int j) { square += part.at[i][j] * part.at[i][j]; });
    const float rstd = rsqrtf(device::row_sum<Plan>(square, scratch) / static_cast<float>(p.D) + p.eps);
    if (!live) continue;
    Part::each([&](int i, int j) {
      const float z = gate.at[i][j], s = functions::sigmoid(z);
      part.at[i][j] *= rstd * weight.at[i][j] * (p.swish ? z * s : s);
    });
    part.store(static_cast<T*>(p.y) + row * p.D, p.D, lane);
    if (lane == 0) p.rstd[row] = rstd;
  }
}

struct BackwardParams {
  const void* x;        // [rows, D]
  const void* gate;     // [rows, D]
  const void* d_y;      // [rows, D]
  const float* weight;  // [D]
  const float* rstd;    // [rows]
  void* d_x;            // [rows, D] or null
  void* d_gate;         // [rows, D] or null
  float* partials;      // [blocks, D] of d_weight, or null
  int64_t rows, D;
  bool swish;
};

// With n = x · r, g = d_y · weight · act(gate):
//   d_x = r (g − n · mean(g n)),   d_gate = d_y · n · weight · act'(gate),   d_weight = Σ_rows d_y · n · act(gate)
template <class T, class Plan>
__global__ void __launch_bounds__(Plan::kThreads) gated_rms_norm_backward(BackwardParams p) {
  __shared__ float scratch[32];
  __shared__ float columns[Plan::kMaxD];
  using Part = device::RowPart<Plan>;
  const int lane = threadIdx.x % Plan::kGroup;
  Part weight, d_weight;
  weight.load(p.weight, p.D, lane);
  Part::each([&](int i, int j) { d_weight.at[i][j] = 0; });
  for (int64_t first = int64_t{blockIdx.x} * Plan::kRowsPerBlock; first < p.rows; first += int64_t{gridDim.x} * Plan::kRowsPerBlock) {
    const int64_t row = first + threadIdx.x / Plan::kGroup;
    const bool live = row < p.rows;
    const auto at_row = [&](const void* base) { return live ? static_cast<const T*>(base) + row * p.D : nullptr; };
    Part n, gate, g;
    n.load(at_row(p.x), p.D, lane);
    gate.load(at_row(p.gate), p.D, lane);
    g.load(at_row(p.d_y), p.D, lane);
    const float rstd = live ? p.rstd[row] : 0.0f;
    float dot = 0;
    Part::each([&](int i, int j) {
      const float z = gate.at[i][j], s = functions::sigmoid(z), slope = s * (1.0f - s);
      const float act = p.swish ? z * s : s, act_slope = p.swish ? s + z * slope : slope;
      n.at[i][j] *= rstd;
      const float d_scaled = g.at[i][j] * n.at[i][j];  // d_y · n
      d_weight.at[i][j] += d_scaled * act;
      gate.at[i][j] = d_scaled * weight.at[i][j] * act_slope;
      g.at[i][j] *= weight.at[i][j] * act;
      dot += g.at[i][j] * n.at[i][j];
    });
    const float mean = device::row_sum<Plan>(dot, scratch) / static_cast<float>(p.D);
    if (!live) continue;
    if (p.d_gate) gate.store(static_cast<T*>(p.d_gate) + row * p.D, p.D, lane);
    if (!p.d_x) continue;
    Part::each([&](int i, int j) { g.at[i][j] = rstd * (g.at[i][j] - n.at[i][j] * mean); });
    g.store(static_cast<T*>(p.d_x) + row * p.D, p.D, lane);
  }
  if (p.partials) device::store_column_sums<Plan>(d_weight, columns, p.partials + int64_t{blockIdx.x} * p.D, p.D);
}

using cuda::address;
using cuda::aligned16;

}  // namespace

GatedRmsNorm::Saved GatedRmsNorm::forward_cuda(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out) {
  const int64_t D = in.x.size(-1), rows = cuda::num_rows(in.x);
  Saved saved{in.x, in.gate, in.weight, Tensor::empty(ctx, {rows}, DType::f32)};
  const ForwardParams params{in.x.raw(),
                             in.gate.raw(),
                             in.weight.data<float>(),
                             out.y.raw(),
                             saved.rstd.data<float>(),
                             rows,
                             D,
                             static_cast<float>(attrs.eps),
                             attrs.activation == GateActivation::swish};
  const bool aligned = aligned16(in.x) && aligned16(in.gate) && aligned16(in.weight);
  cuda::dispatch_rows(name, in.x.dtype(), D, aligned, [&]<class T, class Plan>() {
    const int64_t blocks = cuda::num_row_blocks(rows, Plan::kRowsPerBlock);
    cuda::launch(ctx.stream(), "gated_rms_norm_forward", &gated_rms_norm_forward<T, Plan>,
                 {.grid = static_cast<unsigned>(blocks), .block = Plan::kThreads}, params);
  });
  return saved;
}

void GatedRmsNorm::backward_cuda(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in) {
  const int64_t D = saved.x.size(-1), rows = cuda::num_rows(saved.x);
  const bool aligned =
      aligned16(saved.x) && aligned16(saved.gate) && aligned16(saved.weight) && aligned16(d_out.y) && aligned16(d_in.x) && aligned16(d_in.gate);
  cuda::dispatch_rows(name, saved.x.dtype(), D, aligned, [&]<class T, class Plan>() {
    const int64_t blocks = cuda::num_row_blocks(rows, Plan::kRowsPerBlock);
    const Tensor partials = d_in.weight ? Tensor::empty(ctx, {blocks, D}, DType::f32) : Tensor{};
    const BackwardParams params{saved.x.raw(),
                                saved.gate.raw(),
                                d_out.y.raw(),
                                saved.weight.data<float>(),
                                saved.rstd.data<float>(),
                                address(d_in.x),
                                address(d_in.gate),
                                cuda::address_of<float>(partials),
                                rows,
                                D,
                                attrs.activation == GateActivation::swish};
    cuda::launch(ctx.stream(), "gated_rms_norm_backward", &gated_rms_norm_backward<T, Plan>,
                 {.grid = static_cast<unsigned>(blocks), .block = Plan::kThreads}, params);
    if (d_in.weight) cuda::sum_partials(ctx, partials, d_in.weight);
  });
}

}  // namespace braid
