// Losses and their gradients in one pass: a block keeps the logits of its row in registers, between the sum over them and d_logits.
#include "cuda/device/math.h"
#include "cuda/device/scalar.h"
#include "cuda/kernels/linear_cross_entropy/softmax.h"
#include "cuda/runtime/check.h"

namespace braid::cuda {
namespace {

constexpr int kThreads = 1024, kWidth = 4, kPacks = 8;  // 32 logits a thread: a row of 32,768 at most
constexpr int64_t kMostLogits = int64_t{kThreads} * kWidth * kPacks;

struct RowParams {
  LossRows rows;
  void* d_logits;      // [rows, V]
  const float* scale;  // []
};

/// join(a, b) over all threads of the block, in a fixed order; `shared` holds one number a warp.
template <class Join>
__device__ float over_block(float value, float* shared, const Join& join) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value = join(value, __shfl_xor_sync(0xffffffffu, value, offset));
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  value = shared[threadIdx.x % 32];
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value = join(value, __shfl_xor_sync(0xffffffffu, value, offset));
  return value;
}

template <class T>
__global__ void __launch_bounds__(kThreads) row_kernel(RowParams p) {
  static_assert(kThreads == 32 * 32);
  __shared__ float highests[32], sums[32];
  const int64_t row = blockIdx.x, V = p.rows.V, target = p.rows.targets[row];
  const float* logits = p.rows.logits + row * V;
  T* d_logits = static_cast<T*>(p.d_logits) + row * V;
  const bool has_target = target >= 0 && target < V;
  const float at_target = has_target ? logits[target] : 0.0f;  // before anybody writes over it
  float x[kPacks][kWidth];
  float highest = -INFINITY;
#pragma unroll
  for (int i = 0; i < kPacks; ++i) {
    const int64_t at = (int64_t{i} * kThreads + threadIdx.x) * kWidth;
    if (at < V) device::load(logits + at, x[i]);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      if (at >= V) x[i][j] = -INFINITY;
      highest = fmaxf(highest, x[i][j]);
    }
  }
  highest = over_block(highest, highests, [](float a, float b) { return fmaxf(a, b); });
  const float base = highest == -INFINITY ? 0.0f : highest;  // no difference of infinities
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kPacks; ++i)
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      x[i][j] = device::fast_exp(x[i][j] - base);
      sum += x[i][j];
    }
  sum = over_block(sum, sums, [](float a, float b) { return a + b; });
  if (threadIdx.x == 0) {
    const float log_sum = logf(sum);
    p.rows.token_loss[row] = has_target ? highest - at_target + log_sum : target < 0 ? 0.0f : __int_as_float(0x7fffffff);
    p.rows.lse[row] = has_target ? highest + log_sum : 0.0f;
  }
  const float g = *p.scale, per_sum = g / sum;
#pragma unroll
  for (int i = 0; i < kPacks; ++i) {
    const int64_t at = (int64_t{i} * kThreads + threadIdx.x) * kWidth;
    if (at >= V) break;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) x[i][j] = target < 0 ? 0.0f : x[i][j] * per_sum - (at + j == target ? g : 0.0f);
    device::store(d_logits + at, x[i]);
  }
}

}  // namespace

bool row_fits(const LossRows& rows) { return rows.V % kWidth == 0 && rows.V <= kMostLogits && !rows.prediction; }

void launch_row_losses(Context& ctx, const LossRows& rows, void* d_logits, DType dtype, const Tensor& scale) {
  const auto kernel = dtype == DType::bf16 ? &row_kernel<device::bf16> : &row_kernel<float>;
  launch(ctx.stream(), "linear_cross_entropy_row", kernel, {.grid = static_cast<unsigned>(rows.rows), .block = kThreads},
         RowParams{rows, d_logits, scale.data<float>()});
}

}  // namespace braid::cuda
