#include "cuda/device/overlap.h"
#include "cuda/kernels/norms/column_sums.h"
#include "cuda/kernels/norms/row_dispatch.h"
#include "cuda/kernels/operands.h"
#include "cuda/runtime/check.h"
#include "ops/rms_norm.h"

namespace braid {
namespace {

struct BackwardParams {
  const void* sum;      // [rows, D]
  const void* d_y;      // [rows, D] or null
  const void* d_sum;    // [rows, D] or null
  const float* weight;  // [D]
  const float* rstd;    // [rows]
  void* d_x;            // [rows, D] or null
  float* partials;      // [blocks, D] of d_weight, or null
  device::RowWalk walk;
};

// d_x = r (g − n · mean(g n)) + d_sum with n = sum · r, g = d_y · weight;  d_weight = Σ_rows d_y · n
template <class T, class Plan>
__global__ void __launch_bounds__(Plan::kThreads, Plan::kBackwardBlocks) rms_norm_backward(BackwardParams p) {
  device::begin_overlapping();
  __shared__ __align__(16) float scratch[2][8];
  __shared__ float columns[Plan::kMaxD];
  using Part = device::RowPart<Plan>;
  const device::RowWalk walk = p.walk;
  device::RowSum row_sum{scratch};
  Part weight, d_weight;
  weight.load(p.weight, walk);
  Part::each([&](int i, int j) { d_weight.at[i][j] = 0; });
  device::RowFetch<T, Plan> next_sum, next_d_y, next_d_sum;
  const auto fetch = [&](int64_t row) {
    const auto at_row = [&](const void* base) { return row < walk.rows && base ? static_cast<const T*>(base) + row * walk.D : nullptr; };
    next_sum.load(at_row(p.sum), walk);
    next_d_y.load(at_row(p.d_y), walk);
    next_d_sum.load(at_row(p.d_sum), walk);
  };
  int64_t row = walk.first();
  fetch(row);
  for (int64_t turn = walk.turns(); turn > 0; --turn, row += walk.stride()) {
    const bool live = row < walk.rows;
    const device::RowFetch<T, Plan> sum = next_sum, d_y = next_d_y, d_sum = next_d_sum;
    const float rstd = live ? p.rstd[row] : 0.0f;
    fetch(row + walk.stride());
    Part n, g;
    float dot = 0;
    Part::each([&](int i, int j) {
      n.at[i][j] = sum.at(i, j) * rstd;
      d_weight.at[i][j] += d_y.at(i, j) * n.at[i][j];
      g.at[i][j] = d_y.at(i, j) * weight.at[i][j];
      dot += g.at[i][j] * n.at[i][j];
    });
    const float mean = row_sum(dot, walk.group) * walk.inverse_D;
    if (!live || !p.d_x) continue;
    Part::each([&](int i, int j) { g.at[i][j] = rstd * (g.at[i][j] - n.at[i][j] * mean) + d_sum.at(i, j); });
    g.store(static_cast<T*>(p.d_x) + row * walk.D, walk);
  }
  if (p.partials) device::store_column_sums<Plan>(d_weight, columns, p.partials + int64_t{blockIdx.x} * walk.D, walk);
}

using cuda::address;

}  // namespace

void RmsNorm::backward_cuda(Context& ctx, const Saved& saved, const Attrs&, const Outputs& d_out, Inputs& d_in) {
  const int64_t D = saved.sum.size(-1), rows = cuda::num_rows(saved.sum);
  const Tensor& target = d_in.x ? d_in.x : d_in.residual;
  const bool aligned = cuda::aligned16(saved.sum) && cuda::aligned16(saved.weight) && cuda::aligned16(d_out.y) && cuda::aligned16(d_out.sum);
  cuda::dispatch_rows(name, saved.sum.dtype(), D, aligned, [&]<class T, class Plan>() {
    const device::RowWalk walk = cuda::row_walk<Plan>(rows, D);
    const Tensor partials = d_in.weight ? Tensor::empty(ctx, {cuda::num_row_blocks(walk, Plan::kBackwardBlocks), D}, DType::f32) : Tensor{};
    const BackwardParams params{saved.sum.raw(),
                                address(d_out.y),
                                address(d_out.sum),
                                saved.weight.data<float>(),
                                saved.rstd.data<float>(),
                                address(target),
                                cuda::address_of<float>(partials),
                                walk};
    cuda::launch_rows(ctx, "rms_norm_backward", &rms_norm_backward<T, Plan>, Plan::kBackwardBlocks, params);
    if (d_in.weight) cuda::sum_partials(ctx, partials, d_in.weight);
  });
  if (d_in.residual) d_in.residual = target;
}

}  // namespace braid
