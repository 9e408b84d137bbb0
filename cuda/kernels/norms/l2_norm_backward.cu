#include "cuda/device/overlap.h"
#include "cuda/kernels/norms/row_dispatch.h"
#include "cuda/kernels/operands.h"
#include "cuda/runtime/check.h"
#include "ops/l2_norm.h"

namespace braid {
namespace {

struct BackwardParams {
  const void* x;       // [rows, D]
  const void* d_y;     // [rows, D]
  const float* scale;  // [rows]
  void* d_x;           // [rows, D]
  device::RowWalk walk;
};

// d_x = r (d_y − y Σ d_y y)
template <class T, class Plan>
__global__ void __launch_bounds__(Plan::kThreads, Plan::kBackwardBlocks) l2_norm_backward(BackwardParams p) {
  device::begin_overlapping();
  __shared__ __align__(16) float scratch[2][8];
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
    d.store(static_cast<T*>(p.d_x) + row * walk.D, walk);
  }
}

}  // namespace

void L2Norm::backward_cuda(Context& ctx, const Saved& saved, const Attrs&, const Outputs& d_out, Inputs& d_in) {
  if (!d_in.x) return;
  const int64_t D = saved.x.size(-1), rows = cuda::num_rows(saved.x);
  const bool aligned = cuda::aligned16(saved.x) && cuda::aligned16(d_out.y) && cuda::aligned16(d_in.x);
  cuda::dispatch_rows(name, saved.x.dtype(), D, aligned, [&]<class T, class Plan>() {
    const BackwardParams params{saved.x.raw(), d_out.y.raw(), saved.scale.data<float>(), d_in.x.raw(), cuda::row_walk<Plan>(rows, D)};
    cuda::launch_rows(ctx, "l2_norm_backward", &l2_norm_backward<T, Plan>, Plan::kBackwardBlocks, params);
  });
}

}  // namespace braid
