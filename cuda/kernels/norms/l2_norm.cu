#include "cuda/kernels/norms/row_dispatch.h"
#include "cuda/kernels/operands.h"
#include "cuda/runtime/check.h"
#include "ops/l2_norm.h"

namespace braid {
namespace {

struct L2Params {
  const void* x;    // [rows, D]
  const void* d_y;  // [rows, D], backward
  void* out;        // [rows, D]: y, or d_x
  float* scale;     // [rows]: written by forward, read by backward
  device::RowWalk walk;
  float eps;
};

// y = x · r
template <class T, class Plan>
__global__ void __launch_bounds__(Plan::kThreads, Plan::kBlocks) l2_norm_forward(L2Params p) {
  __shared__ float scratch[2][8];
  using Part = device::RowPart<Plan>;
  const device::RowWalk walk = p.walk;
  device::RowSum row_sum{scratch};
  const auto at_row = [&](int64_t row) { return row < walk.rows ? static_cast<const T*>(p.x) + row * walk.D : nullptr; };
  device::RowFetch<T, Plan> next;
  int64_t row = walk.first();
  next.load(at_row(row), walk);
  for (int64_t turn = walk.turns(); turn > 0; --turn, row += walk.stride()) {
    const device::RowFetch<T, Plan> x = next;
    next.load(at_row(row + walk.stride()), walk);
    float square = 0;
    Part::each([&](int i, int j) { square += x.at(i, j) * x.at(i, j); });
    const float scale = rsqrtf(row_sum(square, walk.group) + p.eps);
    if (row >= walk.rows) continue;  // after the row sum, which needs every thread
    Part part;
    Part::each([&](int i, int j) { part.at[i][j] = x.at(i, j) * scale; });
    part.store(static_cast<T*>(p.out) + row * walk.D, walk);
    if (walk.lane() == 0) p.scale[row] = scale;
  }
}

// d_x = r (d_y − y Σ d_y y)
template <class T, class Plan>
__global__ void __launch_bounds__(Plan::kThreads, Plan::kBackwardBlocks) l2_norm_backward(L2Params p) {
  __shared__ float scratch[2][8];
  using Part = device::RowPart<Plan>;
  const device::RowWalk walk = p.walk;
  device::RowSum row_sum{scratch};
  device::RowFetch<T, Plan> next_x, next_d_y;
  const auto fetch = [&](int64_t row) {
    const bool live = row < walk.rows;
    next_x.load(live ? static_cast<const T*>(p.x) + row * walk.D : nullptr, walk);
    next_d_y.load(live ? static_cast<const T*>(p.d_y) + row * walk.D : nullptr, walk);
  };
  int64_t row = walk.first();
  fetch(row);
  for (int64_t turn = walk.turns(); turn > 0; --turn, row += walk.stride()) {
    const bool live = row < walk.rows;
    const device::RowFetch<T, Plan> x = next_x, d_y = next_d_y;
    const float scale = live ? p.scale[row] : 0.0f;
    fetch(row + walk.stride());
    float dot = 0;
    Part::each([&](int i, int j) { dot += d_y.at(i, j) * (x.at(i, j) * scale); });
    const float along = row_sum(dot, walk.group);
    if (!live) continue;
    Part d;
    Part::each([&](int i, int j) { d.at[i][j] = scale * (d_y.at(i, j) - x.at(i, j) * scale * along); });
    d.store(static_cast<T*>(p.out) + row * walk.D, walk);
  }
}

}  // namespace

L2Norm::Saved L2Norm::forward_cuda(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out) {
  const int64_t D = in.x.size(-1), rows = cuda::num_rows(in.x);
  Saved saved{in.x, Tensor::empty(ctx, {rows}, DType::f32)};
  cuda::dispatch_rows(name, in.x.dtype(), D, cuda::aligned16(in.x), [&]<class T, class Plan>() {
    const L2Params params{in.x.raw(), nullptr, out.y.raw(), saved.scale.data<float>(), cuda::row_walk<Plan>(rows, D), static_cast<float>(attrs.eps)};
    cuda::launch_rows(ctx, "l2_norm_forward", &l2_norm_forward<T, Plan>, Plan::kBlocks, params);
  });
  return saved;
}

void L2Norm::backward_cuda(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in) {
  if (!d_in.x) return;
  const int64_t D = saved.x.size(-1), rows = cuda::num_rows(saved.x);
  const bool aligned = cuda::aligned16(saved.x) && cuda::aligned16(d_out.y) && cuda::aligned16(d_in.x);
  cuda::dispatch_rows(name, saved.x.dtype(), D, aligned, [&]<class T, class Plan>() {
    const L2Params params{
        saved.x.raw(), d_out.y.raw(), d_in.x.raw(), saved.scale.data<float>(), cuda::row_walk<Plan>(rows, D), static_cast<float>(attrs.eps)};
    cuda::launch_rows(ctx, "l2_norm_backward", &l2_norm_backward<T, Plan>, Plan::kBackwardBlocks, params);
  });
}

}  // namespace braid
