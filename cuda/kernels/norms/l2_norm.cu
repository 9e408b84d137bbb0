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
  int64_t rows, D;
  float eps;
};

// y = x · r
template <class T, class Plan>
__global__ void __launch_bounds__(Plan::kThreads) l2_norm_forward(L2Params p) {
  __shared__ float scratch[32];
  using Part = device::RowPart<Plan>;
  const int lane = threadIdx.x % Plan::kGroup;
  for (int64_t first = int64_t{blockIdx.x} * Plan::kRowsPerBlock; first < p.rows; first += int64_t{gridDim.x} * Plan::kRowsPerBlock) {
    const int64_t row = first + threadIdx.x / Plan::kGroup;
    const bool live = row < p.rows;  // every thread stays for the row sums
    Part part;
    part.load(live ? static_cast<const T*>(p.x) + row * p.D : nullptr, p.D, lane);
    float square = 0;
    Part::each([&](int i, int j) { square += part.at[i][j] * part.at[i][j]; });
    const float scale = rsqrtf(device::row_sum<Plan>(square, scratch) + p.eps);
    if (!live) continue;
    Part::each([&](int i, int j) { part.at[i][j] *= scale; });
    part.store(static_cast<T*>(p.out) + row * p.D, p.D, lane);
    if (lane == 0) p.scale[row] = scale;
  }
}

// d_x = r (d_y − y Σ d_y y)
template <class T, class Plan>
__global__ void __launch_bounds__(Plan::kThreads) l2_norm_backward(L2Params p) {
  __shared__ float scratch[32];
  using Part = device::RowPart<Plan>;
  const int lane = threadIdx.x % Plan::kGroup;
  for (int64_t first = int64_t{blockIdx.x} * Plan::kRowsPerBlock; first < p.rows; first += int64_t{gridDim.x} * Plan::kRowsPerBlock) {
    const int64_t row = first + threadIdx.x / Plan::kGroup;
    const bool live = row < p.rows;
    Part y, d;
    y.load(live ? static_cast<const T*>(p.x) + row * p.D : nullptr, p.D, lane);
    d.load(live ? static_cast<const T*>(p.d_y) + row * p.D : nullptr, p.D, lane);
    const float scale = live ? p.scale[row] : 0.0f;
    float dot = 0;
    Part::each([&](int i, int j) {
      y.at[i][j] *= scale;
      dot += d.at[i][j] * y.at[i][j];
    });
    const float along = device::row_sum<Plan>(dot, scratch);
    if (!live) continue;
    Part::each([&](int i, int j) { d.at[i][j] = scale * (d.at[i][j] - y.at[i][j] * along); });
    d.store(static_cast<T*>(p.out) + row * p.D, p.D, lane);
  }
}

/// Blocks of a kernel whose rows have nothing in common.
unsigned num_blocks(int64_t rows, int rows_per_block) {
  const int64_t wanted = (rows + rows_per_block - 1) / rows_per_block;
  return static_cast<unsigned>(wanted < 4224 ? wanted : 4224);
}

}  // namespace

L2Norm::Saved L2Norm::forward_cuda(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out) {
  const int64_t D = in.x.size(-1), rows = cuda::num_rows(in.x);
  Saved saved{in.x, Tensor::empty(ctx, {rows}, DType::f32)};
  const L2Params params{in.x.raw(), nullptr, out.y.raw(), saved.scale.data<float>(), rows, D, static_cast<float>(attrs.eps)};
  cuda::dispatch_rows(name, in.x.dtype(), D, cuda::aligned16(in.x), [&]<class T, class Plan>() {
    cuda::launch(ctx.stream(), "l2_norm_forward", &l2_norm_forward<T, Plan>, {.grid = num_blocks(rows, Plan::kRowsPerBlock), .block = Plan::kThreads},
                 params);
  });
  return saved;
}

void L2Norm::backward_cuda(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in) {
  if (!d_in.x) return;
  const int64_t D = saved.x.size(-1), rows = cuda::num_rows(saved.x);
  const L2Params params{saved.x.raw(), d_out.y.raw(), d_in.x.raw(), saved.scale.data<float>(), rows, D, static_cast<float>(attrs.eps)};
  const bool aligned = cuda::aligned16(saved.x) && cuda::aligned16(d_out.y) && cuda::aligned16(d_in.x);
  cuda::dispatch_rows(name, saved.x.dtype(), D, aligned, [&]<class T, class Plan>() {
    cuda::launch(ctx.stream(), "l2_norm_backward", &l2_norm_backward<T, Plan>,
                 {.grid = num_blocks(rows, Plan::kRowsPerBlock), .block = Plan::kThreads}, params);
  });
}

}  // namespace braid
