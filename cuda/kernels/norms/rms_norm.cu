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
  int64_t rows, D;
  float eps;
};

template <class T, class Plan>
__global__ void __launch_bounds__(Plan::kThreads) rms_norm_forward(ForwardParams p) {
  __shared__ float scratch[32];
  using Part = device::RowPart<Plan>;
  const int lane = threadIdx.x % Plan::kGroup;
  Part weight;
  weight.load(p.weight, p.D, lane);
  for (int64_t first = int64_t{blockIdx.x} * Plan::kRowsPerBlock; first < p.rows; first += int64_t{gridDim.x} * Plan::kRowsPerBlock) {
    const int64_t row = first + threadIdx.x / Plan::kGroup;
    const bool live = row < p.rows;  // every thread stays for the row sums
    const T* x = live ? static_cast<const T*>(p.x) + row * p.D : nullptr;
    Part part;
    part.load(x, p.D, lane);
    if (p.residual) {
      Part residual;
      residual.load(live ? static_cast<const T*>(p.residual) + row * p.D : nullptr, p.D, lane);
      // The sum is rounded to T before it is normalised: the next layer reads the same values.
      Part::each([&](int i, int j) { part.at[i][j] = device::to_float(device::from_float<T>(part.at[i][j] + residual.at[i][j])); });
      if (live) part.store(static_cast<T*>(p.sum) + row * p.D, p.D, lane);
    }
    float square = 0;
    Part::each([&](int i, int j) { square += part.at[i][j] * part.at[i][j]; });
    const float rstd = rsqrtf(device::row_sum<Plan>(square, scratch) / static_cast<float>(p.D) + p.eps);
    Part::each([&](int i, int j) { part.at[i][j] *= rstd * weight.at[i][j]; });
    if (!live) continue;
    part.store(static_cast<T*>(p.y) + row * p.D, p.D, lane);
    if (lane == 0) p.rstd[row] = rstd;
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
  int64_t rows, D;
};

// d_x = r (g − n · mean(g n)) + d_sum with n = sum · r, g = d_y · weight;  d_weight = Σ_rows d_y · n
template <class T, class Plan>
__global__ void __launch_bounds__(Plan::kThreads) rms_norm_backward(BackwardParams p) {
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
    const auto at_row = [&](const void* base) { return live && base ? static_cast<const T*>(base) + row * p.D : nullptr; };
    Part n, g;
    n.load(at_row(p.sum), p.D, lane);
    g.load(at_row(p.d_y), p.D, lane);
    const float rstd = live ? p.rstd[row] : 0.0f;
    float dot = 0;
    Part::each([&](int i, int j) {
      n.at[i][j] *= rstd;
      d_weight.at[i][j] += g.at[i][j] * n.at[i][j];
      g.at[i][j] *= weight.at[i][j];
      dot += g.at[i][j] * n.at[i][j];
    });
    const float mean = device::row_sum<Plan>(dot, scratch) / static_cast<float>(p.D);
    if (!live || !p.d_x) continue;
    Part d_sum;
    d_sum.load(at_row(p.d_sum), p.D, lane);
    Part::each([&](int i, int j) { g.at[i][j] = rstd * (g.at[i][j] - n.at[i][j] * mean) + d_sum.at[i][j]; });
    g.store(static_cast<T*>(p.d_x) + row * p.D, p.D, lane);
  }
  if (p.partials) device::store_column_sums<Plan>(d_weight, columns, p.partials + int64_t{blockIdx.x} * p.D, p.D);
}

using cuda::address;

}  // namespace

RmsNorm::Saved RmsNorm::forward_cuda(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out) {
  const int64_t D = in.x.size(-1), rows = cuda::num_rows(in.x);
  Saved saved{in.residual ? out.sum : in.x, in.weight, Tensor::empty(ctx, {rows}, DType::f32)};
  const ForwardParams params{
      in.x.raw(), address(in.residual),         in.weight.data<float>(), address(out.sum), out.y.raw(), saved.rstd.data<float>(), rows,
      D,          static_cast<float>(attrs.eps)};
  const bool aligned = cuda::aligned16(in.x) && cuda::aligned16(in.residual) && cuda::aligned16(in.weight);
  cuda::dispatch_rows(name, in.x.dtype(), D, aligned, [&]<class T, class Plan>() {
    const int64_t blocks = cuda::num_row_blocks(rows, Plan::kRowsPerBlock);
    cuda::launch(ctx.stream(), "rms_norm_forward", &rms_norm_forward<T, Plan>, {.grid = static_cast<unsigned>(blocks), .block = Plan::kThreads},
                 params);
  });
  return saved;
}

void RmsNorm::backward_cuda(Context& ctx, const Saved& saved, const Attrs&, const Outputs& d_out, Inputs& d_in) {
  const int64_t D = saved.sum.size(-1), rows = cuda::num_rows(saved.sum);
  const Tensor& target = d_in.x ? d_in.x : d_in.residual;
  const bool aligned = cuda::aligned16(saved.sum) && cuda::aligned16(saved.weight) && cuda::aligned16(d_out.y) && cuda::aligned16(d_out.sum);
  cuda::dispatch_rows(name, saved.sum.dtype(), D, aligned, [&]<class T, class Plan>() {
    const int64_t blocks = cuda::num_row_blocks(rows, Plan::kRowsPerBlock);
    const Tensor partials = d_in.weight ? Tensor::empty(ctx, {blocks, D}, DType::f32) : Tensor{};
    const BackwardParams params{saved.sum.raw(),
                                address(d_out.y),
                                address(d_out.sum),
                                saved.weight.data<float>(),
                                saved.rstd.data<float>(),
                                address(target),
                                cuda::address_of<float>(partials),
                                rows,
                                D};
    cuda::launch(ctx.stream(), "rms_norm_backward", &rms_norm_backward<T, Plan>, {.grid = static_cast<unsigned>(blocks), .block = Plan::kThreads},
                 params);
    if (d_in.weight) cuda::sum_partials(ctx, partials, d_in.weight);
  });
  if (d_in.residual) d_in.residual = target;
}

}  // namespace braid
