#include "cuda/device/overlap.h"
#include "cuda/kernels/norms/row_dispatch.h"
#include "cuda/kernels/operands.h"
#include "cuda/runtime/check.h"
#include "ops/l2_norm.h"

namespace braid {
namespace {

struct ForwardParams {
  const void* x;  // [rows, D]
  void* y;        // [rows, D]
  float* scale;   // [rows]
  device::RowWalk walk;
  float eps;
};

// y = x · r
template <class T, class Plan>
__global__ void __launch_bounds__(Plan::kThreads, Plan::kBlocks) l2_norm_forward(ForwardParams p) {
  __shared__ __align__(16) float scratch[2][8];
  device::begin_overlapping();
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
    part.store(static_cast<T*>(p.y) + row * walk.D, walk);
    if (walk.lane() == 0) p.scale[row] = scale;
  }
}

}  // namespace

L2Norm::Saved L2Norm::forward_cuda(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out) {
  const int64_t D = in.x.size(-1), rows = cuda::num_rows(in.x);
  Saved saved{in.x, Tensor::empty(ctx, {rows}, DType::f32)};
  cuda::dispatch_rows(name, in.x.dtype(), D, cuda::aligned16(in.x), [&]<class T, class Plan>() {
    const ForwardParams params{in.x.raw(), out.y.raw(), saved.scale.data<float>(), cuda::row_walk<Plan>(rows, D), static_cast<float>(attrs.eps)};
    cuda::launch_rows(ctx, "l2_norm_forward", &l2_norm_forward<T, Plan>, Plan::kBlocks, params);
  });
  return saved;
}

}  // namespace braid
