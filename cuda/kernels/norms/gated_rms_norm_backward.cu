#include "cuda/device/math.h"
#include "cuda/device/overlap.h"
#include "cuda/kernels/norms/column_sums.h"
#include "cuda/kernels/norms/row_dispatch.h"
#include "cuda/kernels/operands.h"
#include "cuda/runtime/check.h"
#include "ops/gated_rms_norm.h"

namespace braid {
namespace {

struct BackwardParams {
  const void* x;        // [rows, D]
  const void* gate;     // [rows, D]
  const void* d_y;      // [rows, D]
  const float* weight;  // [D]
  const float* rstd;    // [rows]
  void* d_x;            // [rows, D] or null
  void* d_gate;         // [rows, D] or null
  float* partials;      // [blocks, D] of d_weight, or null
  device::RowWalk walk;
  bool swish;
};

// With n = x · r, g = d_y · weight · act(gate):
//   d_x = r (g − n · mean(g n)),   d_gate = d_y · n · weight · act'(gate),   d_weight = Σ_rows d_y · n · act(gate)
template <class T, class Plan>
__global__ void __launch_bounds__(Plan::kThreads, Plan::kBackwardBlocks) gated_rms_norm_backward(BackwardParams p) {
  device::begin_overlapping();
  __shared__ __align__(16) float scratch[2][8];
  __shared__ float columns[Plan::kMaxD];
  using Part = device::RowPart<Plan>;
  const device::RowWalk walk = p.walk;
  device::RowSum row_sum{scratch};
  Part weight, d_weight;
  weight.load(p.weight, walk);
  Part::each([&](int i, int j) { d_weight.at[i][j] = 0; });
  device::RowFetch<T, Plan> next_x, next_gate, next_d_y;
  const auto fetch = [&](int64_t row) {
    const auto at_row = [&](const void* base) { return row < walk.rows ? static_cast<const T*>(base) + row * walk.D : nullptr; };
    next_x.load(at_row(p.x), walk);
    next_gate.load(at_row(p.gate), walk);
    next_d_y.load(at_row(p.d_y), walk);
  };
  int64_t row = walk.first();
  fetch(row);
  for (int64_t turn = walk.turns(); turn > 0; --turn, row += walk.stride()) {
    const bool live = row < walk.rows;
    const device::RowFetch<T, Plan> x = next_x, gate = next_gate, d_y = next_d_y;
    const float rstd = live ? p.rstd[row] : 0.0f;
    fetch(row + walk.stride());
    Part g, d_gate;
    float dot = 0;
    Part::each([&](int i, int j) {
      const float z = gate.at(i, j), s = device::fast_sigmoid(z), slope = s * (1.0f - s);
      const float act = p.swish ? z * s : s, act_slope = p.swish ? s + z * slope : slope;
      const float n = x.at(i, j) * rstd, d_scaled = d_y.at(i, j) * n;
      d_weight.at[i][j] += d_scaled * act;
      d_gate.at[i][j] = d_scaled * weight.at[i][j] * act_slope;
      g.at[i][j] = d_y.at(i, j) * weight.at[i][j] * act;
      dot += g.at[i][j] * n;
    });
    const float mean = row_sum(dot, walk.group) * walk.inverse_D;
    if (!live) continue;
    if (p.d_gate) d_gate.store(static_cast<T*>(p.d_gate) + row * walk.D, walk);
    if (!p.d_x) continue;
    Part::each([&](int i, int j) { g.at[i][j] = rstd * (g.at[i][j] - x.at(i, j) * rstd * mean); });
    g.store(static_cast<T*>(p.d_x) + row * walk.D, walk);
  }
  if (p.partials) device::store_column_sums<Plan>(d_weight, columns, p.partials + int64_t{blockIdx.x} * walk.D, walk);
}

using cuda::address;
using cuda::aligned16;

}  // namespace

void GatedRmsNorm::backward_cuda(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in) {
  const int64_t D = saved.x.size(-1), rows = cuda::num_rows(saved.x);
  const bool aligned =
      aligned16(saved.x) && aligned16(saved.gate) && aligned16(saved.weight) && aligned16(d_out.y) && aligned16(d_in.x) && aligned16(d_in.gate);
  cuda::dispatch_rows(name, saved.x.dtype(), D, aligned, [&]<class T, class Plan>() {
    const device::RowWalk walk = cuda::row_walk<Plan>(rows, D);
    const Tensor partials = d_in.weight ? Tensor::empty(ctx, {cuda::num_row_blocks(walk, Plan::kBackwardBlocks), D}, DType::f32) : Tensor{};
    const BackwardParams params{saved.x.raw(),
                                saved.gate.raw(),
                                d_out.y.raw(),
                                saved.weight.data<float>(),
                                saved.rstd.data<float>(),
                                address(d_in.x),
                                address(d_in.gate),
                                cuda::address_of<float>(partials),
                                walk,
                                attrs.activation == GateActivation::swish};
    cuda::launch_rows(ctx, "gated_rms_norm_backward", &gated_rms_norm_backward<T, Plan>, Plan::kBackwardBlocks, params);
    if (d_in.weight) cuda::sum_partials(ctx, partials, d_in.weight);
  });
}

}  // namespace braid
