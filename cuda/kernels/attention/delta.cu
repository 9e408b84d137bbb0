#include "cuda/device/reduce.h"
#include "cuda/kernels/attention/fast.h"
#include "cuda/kernels/attention/plain.h"
#include "cuda/kernels/attention/plain_tiles.h"

namespace braid::attention {
namespace {

constexpr int kThreads = 256;

struct DeltaParams {
  Problem problem;
  const float* d_lse;  // [Nq, H] or null
  float* delta;        // [Nq, H]
  float2* stats;       // [H, stride]
  int64_t stride;
};

// A warp per query and head.
__global__ void __launch_bounds__(kThreads) delta_kernel(DeltaParams params) {
  const Problem& p = params.problem;
  const int lane = threadIdx.x % 32;
  const int64_t row = int64_t{blockIdx.x} * (kThreads / 32) + threadIdx.x / 32;
  if (row >= p.Nq * p.H) return;
  float sum = 0;
  if (p.d_o)
    for (int64_t c = lane; c < p.DV; c += 32)
      sum += plain::element(p.d_o, p.is_bf16, row * p.DV + c) * plain::element(p.o, p.is_bf16, row * p.DV + c);
  sum = device::warp_sum(sum);
  if (lane == 0) params.delta[row] = sum - (params.d_lse ? params.d_lse[row] : 0.0f);
}

// A block has 64 queries of one head, so that a row of stats is written whole; D / 8 lanes share a query.
template <int D>
__global__ void __launch_bounds__(kThreads) stats_kernel(DeltaParams params) {
  constexpr int kLanes = D / 8, kGroups = kThreads / kLanes;
  const Problem& p = params.problem;
  const int64_t h = blockIdx.x % p.H, first = blockIdx.x / p.H * int64_t{64};
  const int lane = threadIdx.x % kLanes;
#pragma unroll
  for (int turn = 0; turn < 64 / kGroups; ++turn) {
    const int64_t n = first + turn * kGroups + threadIdx.x / kLanes;
    const bool live = n < p.Nq;
    const int64_t row = live ? n * p.H + h : h;
    float d_o[8], o[8], sum = 0;
    device::load(static_cast<const device::bf16*>(p.d_o) + row * D + lane * 8, d_o);
    device::load(static_cast<const device::bf16*>(p.o) + row * D + lane * 8, o);
#pragma unroll
    for (int i = 0; i < 8; ++i) sum += d_o[i] * o[i];
#pragma unroll
    for (int offset = kLanes / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    if (lane != 0 || !live) continue;
    params.stats[h * params.stride + n] = {p.lse[row] * 1.4426950408889634f, sum - (params.d_lse ? params.d_lse[row] : 0.0f)};
  }
}

}  // namespace

void launch_delta(Context& ctx, const Problem& problem, const float* d_lse, float* delta) {
  const DeltaParams params{.problem = problem, .d_lse = d_lse, .delta = delta};
  const int64_t warps = kThreads / 32, blocks = (problem.Nq * problem.H + warps - 1) / warps;
  cuda::launch(ctx.stream(), "attention_delta", &delta_kernel, plain::config_for(blocks, 0), params);
}

void launch_stats(Context& ctx, const Problem& problem, const float* d_lse, float2* stats) {
  const DeltaParams params{.problem = problem, .d_lse = d_lse, .stats = stats, .stride = stats_stride(problem.Nq)};
  const auto kernel = problem.D == 64 ? &stats_kernel<64> : problem.D == 128 ? &stats_kernel<128> : &stats_kernel<256>;
  cuda::launch(ctx.stream(), "attention_stats", kernel, plain::config_for((problem.Nq + 63) / 64 * problem.H, 0), params);
}

}  // namespace braid::attention
