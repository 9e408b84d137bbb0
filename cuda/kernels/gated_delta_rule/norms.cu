// Norms of the rows of q and k, and gradients through them. Rows stay as they are: a norm is a factor of a token, which costs no digits.
#include "cuda/kernels/gated_delta_rule/chunks.h"
#include "cuda/runtime/check.h"

namespace braid::delta_cuda {
namespace {

constexpr int kThreads = 256, kPack = 8;
constexpr float kEps = 1e-6f, kHuge = 1e12f;

/// The sum over the threads of a row, kPack channels in each.
template <int K>
__device__ inline float row_sum(float x) {
#pragma unroll
  for (int offset = K / kPack / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
  return x;
}
template <int K>
__device__ inline float row_max(float x) {
#pragma unroll
  for (int offset = K / kPack / 2; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, offset));
  return x;
}

template <int K>
__global__ void __launch_bounds__(kThreads) norm_kernel(NormParams p) {
  constexpr int kGroup = K / kPack;
  const int64_t row = int64_t{blockIdx.x} * (kThreads / kGroup) + threadIdx.x / kGroup;
  const bool live = row < p.rows;  // every thread stays for the sums
  const int64_t at = (live ? row : 0) * K + threadIdx.x % kGroup * kPack;
  float x[kPack], largest = 0, sum = 0;
  device::load(p.x + at, x);
#pragma unroll
  for (int i = 0; i < kPack; ++i) largest = fmaxf(largest, fabsf(x[i]));
  largest = row_max<K>(largest);
  const int exponent = largest > kHuge ? ilogbf(largest) : 0;
#pragma unroll
  for (int i = 0; i < kPack; ++i) {
    x[i] = ldexpf(x[i], -exponent);
    sum += x[i] * x[i];
  }
  const float norm = 1 / sqrtf(row_sum<K>(sum) + ldexpf(kEps, -2 * exponent));
  if (!live) return;
  device::store(p.y + at, x);
  if (threadIdx.x % kGroup == 0) p.norm[row * 2] = norm, p.norm[row * 2 + 1] = ldexpf(norm, -exponent);
}

// d_x = r (d − n Σ d n) with n = y / |y|
template <int K>
__global__ void __launch_bounds__(kThreads) gather_kernel(NormParams p) {
  constexpr int kGroup = K / kPack;
  const int64_t row = int64_t{blockIdx.x} * (kThreads / kGroup) + threadIdx.x / kGroup;
  const bool live = row < p.rows;
  const int64_t at = threadIdx.x % kGroup * kPack, own = live ? row : 0;
  float total[kPack] = {};
  for (int64_t g = 0; g < p.group; ++g) {
    float part[kPack];
    device::load(p.d_y + (own * p.group + g) * K + at, part);
#pragma unroll
    for (int i = 0; i < kPack; ++i) total[i] += part[i];
  }
  if (p.norm) {
    float y[kPack], dot = 0;
    device::load(p.y + own * K + at, y);
    const float norm = p.norm[own * 2], scale = p.norm[own * 2 + 1];
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      y[i] *= norm;
      dot += y[i] * total[i];
    }
    dot = row_sum<K>(dot);
#pragma unroll
    for (int i = 0; i < kPack; ++i) total[i] = scale * (total[i] - dot * y[i]);
  }
  if (live) device::store(p.d_x + row * K + at, total);
}

void launch_rows(Context& ctx, std::string_view name, void (*by_64)(NormParams), void (*by_128)(NormParams), void (*by_256)(NormParams),
                 const NormParams& params) {
  const int64_t rows_per_block = kThreads / (params.K / kPack);
  const cuda::LaunchConfig config{.grid = static_cast<unsigned>((params.rows + rows_per_block - 1) / rows_per_block), .block = kThreads};
  cuda::launch(ctx.stream(), name, params.K == 64 ? by_64 : params.K == 128 ? by_128 : by_256, config, params);
}

}  // namespace

void launch_norms(Context& ctx, const NormParams& params) {
  launch_rows(ctx, "gated_delta_rule_norms", &norm_kernel<64>, &norm_kernel<128>, &norm_kernel<256>, params);
}
void launch_gather(Context& ctx, const NormParams& params) {
  launch_rows(ctx, "gated_delta_rule_gather_rows", &gather_kernel<64>, &gather_kernel<128>, &gather_kernel<256>, params);
}

}  // namespace braid::delta_cuda
