#include "cuda/device/math.h"
#include "cuda/device/overlap.h"
#include "cuda/kernels/norms/row_dispatch.h"
#include "cuda/kernels/operands.h"
#include "cuda/runtime/check.h"
#include "ops/gated_rms_norm.h"

namespace braid {
namespace {

struct ForwardParams {
  const void* x;        // [rows, D]
  const void* gate;     // [rows, D]
  const float* weight;  // [D]
  void* y;              // [rows, D]
  float* rstd;          // [rows]
  device::RowWalk walk;
  float eps;
  bool swish;
};

// y = x · r · weight · act(gate)
template <class T, class Plan>
__global__ void __launch_bounds__(Plan::kThreads, Plan::kBlocks) gated_rms_norm_forward(ForwardParams p) {
  __shared__ __align__(16) float scratch[2][8];
  device::let_next_begin();
  using Part = device::RowPart<Plan>;
  const device::RowWalk walk = p.walk;
  device::RowSum row_sum{scratch};
  Part weight;
  weight.load(p.weight, walk);
  device::wait_for_earlier_kernels();
  device::RowFetch<T, Plan> next_x, next_gate;
  const auto fetch = [&](int64_t row) {
    const bool live = row < walk.rows;
    next_x.load(live ? static_cast<const T*>(p.x) + row * walk.D : nullptr, walk);
    next_gate.load(live ? static_cast<const T*>(p.gate) + row * walk.D : nullptr, walk);
  };
  int64_t row = walk.first();
  fetch(row);
  for (int64_t turn = walk.turns(); turn > 0; --turn, row += walk.stride()) {
    const device::RowFetch<T, Plan> x = next_x, gate = next_gate;
    fetch(row + walk.stride());
    float square = 0;
    Part::each([&](int i, int j) { square += x.at(i, j) * x.at(i, j); });
    const float rstd = rsqrtf(row_sum(square, walk.group) * walk.inverse_D + p.eps);
    if (row >= walk.rows) continue;  // after the row sum, which needs every thread
    Part part;
    Part::each([&](int i, int j) {
      const float z = gate.at(i, j), s = device::fast_sigmoid(z);
      part.at[i][j] = x.at(i, j) * (rstd * weight.at[i][j] * (p.swish ? z * s : s));
    });
    part.store(static_cast<T*>(p.y) + row * walk.D, walk);
    if (walk.lane() == 0) p.rstd[row] = rstd;
  }
}

using cuda::aligned16;

}  // namespace

GatedRmsNorm::Saved GatedRmsNorm::forward_cuda(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out) {
  const int64_t D = in.x.size(-1), rows = cuda::num_rows(in.x);
  Saved saved{in.x, in.gate, in.weight, Tensor::empty(ctx, {rows}, DType::f32)};
  const bool aligned = aligned16(in.x) && aligned16(in.gate) && aligned16(in.weight);
  cuda::dispatch_rows(name, in.x.dtype(), D, aligned, [&]<class T, class Plan>() {
    const ForwardParams params{in.x.raw(),
                               in.gate.raw(),
                               in.weight.data<float>(),
                               out.y.raw(),
                               saved.rstd.data<float>(),
                               cuda::row_walk<Plan>(rows, D),
                               static_cast<float>(attrs.eps),
                               attrs.activation == GateActivation::swish};
    cuda::launch_rows(ctx, "gated_rms_norm_forward", &gated_rms_norm_forward<T, Plan>, Plan::kBlocks, params);
  });
  return saved;
}

}  // namespace braid
