#include "cuda/device/overlap.h"
#include "cuda/kernels/norms/row_dispatch.h"
#include "cuda/kernels/operands.h"
#include "cuda/runtime/check.h"
#include "ops/rms_norm.h"

namespace braid {
namespace {

struct ForwardParams {
  const void* x;         // [rows, D]
  const void* residual;  // [rows, D] or null
  const float* weight;   // [D]
  void* sum;             // [rows, D], with a residual
  void* y;               // [rows, D]
  float* rstd;           // [rows]
  device::RowWalk walk;
  float eps;
};

template <class T, class Plan>
__global__ void __launch_bounds__(Plan::kThreads, Plan::kBlocks) rms_norm_forward(ForwardParams p) {
  __shared__ __align__(16) float scratch[2][8];
  device::let_next_begin();
  using Part = device::RowPart<Plan>;
  const device::RowWalk walk = p.walk;
  device::RowSum row_sum{scratch};
  Part weight;
  weight.load(p.weight, walk);
  device::wait_for_earlier_kernels();
  device::RowFetch<T, Plan> next_x, next_residual;
  const auto fetch = [&](int64_t row) {
    const bool live = row < walk.rows;
    next_x.load(live ? static_cast<const T*>(p.x) + row * walk.D : nullptr, walk);
    if (p.residual) next_residual.load(live ? static_cast<const T*>(p.residual) + row * walk.D : nullptr, walk);
  };
  int64_t row = walk.first();
  fetch(row);
  for (int64_t turn = walk.turns(); turn > 0; --turn, row += walk.stride()) {
    const bool live = row < walk.rows;  // every thread stays for the row sums
    const device::RowFetch<T, Plan> x = next_x, residual = next_residual;
    fetch(row + walk.stride());
    Part part;
    Part::each([&](int i, int j) { part.at[i][j] = x.at(i, j); });
    if (p.residual) {
      // The sum is rounded to T before it is normalised: the next layer reads the same values.
      Part::each([&](int i, int j) { part.at[i][j] = device::to_float(device::from_float<T>(part.at[i][j] + residual.at(i, j))); });
      if (live) part.store(static_cast<T*>(p.sum) + row * walk.D, walk);
    }
    float square = 0;
    Part::each([&](int i, int j) { square += part.at[i][j] * part.at[i][j]; });
    const float rstd = rsqrtf(row_sum(square, walk.group) * walk.inverse_D + p.eps);
    if (!live) continue;
    Part::each([&](int i, int j) { part.at[i][j] *= rstd * weight.at[i][j]; });
    part.store(static_cast<T*>(p.y) + row * walk.D, walk);
    if (walk.lane() == 0) p.rstd[row] = rstd;
  }
}

using cuda::address;

}  // namespace

RmsNorm::Saved RmsNorm::forward_cuda(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out) {
  const int64_t D = in.x.size(-1), rows = cuda::num_rows(in.x);
  Saved saved{in.residual ? out.sum : in.x, in.weight, Tensor::empty(ctx, {rows}, DType::f32)};
  const bool aligned = cuda::aligned16(in.x) && cuda::aligned16(in.residual) && cuda::aligned16(in.weight);
  cuda::dispatch_rows(name, in.x.dtype(), D, aligned, [&]<class T, class Plan>() {
    const ForwardParams params{in.x.raw(),  address(in.residual),     in.weight.data<float>(),       address(out.sum),
                               out.y.raw(), saved.rstd.data<float>(), cuda::row_walk<Plan>(rows, D), static_cast<float>(attrs.eps)};
    cuda::launch_rows(ctx, "rms_norm_forward", &rms_norm_forward<T, Plan>, Plan::kBlocks, params);
  });
  return saved;
}

}  // namespace braid
