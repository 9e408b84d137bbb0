#include "cuda/kernels/norms/column_sums.h"
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
  __shared__ float scratch[2][8];
  using Part = device::RowPart<Plan>;
  const device::RowWalk walk = p.walk;
  device::RowSum row_sum{scratch};
  Part weight;
  weight.load(p.weight, walk);
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
    const float rstd = rsqrtf(row_sum(square, walk.group) / static_cast<float>(walk.D) + p.eps);
    if (!live) continue;
    Part::each([&](int i, int j) { part.at[i][j] *= rstd * weight.at[i][j]; });
    part.store(static_cast<T*>(p.y) + row * walk.D, walk);
    if (walk.lane() == 0) p.rstd[row] = rstd;
  }
}

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
  __shared__ float scratch[2][8];
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
    const float mean = row_sum(dot, walk.group) / static_cast<float>(walk.D);
    if (!live || !p.d_x) continue;
    Part::each([&](int i, int j) { g.at[i][j] = rstd * (g.at[i][j] - n.at[i][j] * mean) + d_sum.at(i, j); });
    g.store(static_cast<T*>(p.d_x) + row * walk.D, walk);
  }
  if (p.partials) device::store_column_sums<Plan>(d_weight, columns, p.partials + int64_t{blockIdx.x} * walk.D, walk);
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
