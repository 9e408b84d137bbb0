// The forward walk. Of a chunk with the state S before it, all transposed (columns of V are rows), with X = beta (v − k⁺ S):
//   X^T = beta (v^T − in ∘ S^T k^T),   U^T = X^T A^T,   O^T = q_in ∘ (S^T q^T) + U^T P^T,   S^T = total S^T + (out ∘ U^T) k
// X, A and U go into products as a bf16 and its rest: what they are wrong by never leaves the state.
#include "cuda/kernels/gated_delta_rule/walk.h"

namespace braid::delta_cuda {
namespace {

/// r = beta (v − in r), the tile of v as the warp's own 16 columns.
__device__ inline void subtract_from_values(float (&r)[8][4], uint32_t values, const float* factors) {
#pragma unroll
  for (int m = 0; m < 4; ++m) {
    uint32_t v[4];
    device::ldmatrix_x4_transposed(v, values + lane_offset<16, true>() + 16 * m * 32);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int n = 2 * m + half, token = 8 * n + threadIdx.x % 4 * 2;
      const float2 in = *reinterpret_cast<const float2*>(factors + kKeyIn * kChunk + token);
      const float2 beta = *reinterpret_cast<const float2*>(factors + kBeta * kChunk + token);
      r[n][0] = beta.x * (device::low_bf16(v[2 * half]) - in.x * r[n][0]);
      r[n][1] = beta.y * (device::high_bf16(v[2 * half]) - in.y * r[n][1]);
      r[n][2] = beta.x * (device::low_bf16(v[2 * half + 1]) - in.x * r[n][2]);
      r[n][3] = beta.y * (device::high_bf16(v[2 * half + 1]) - in.y * r[n][3]);
    }
  }
}

template <class Plan>
__global__ void __launch_bounds__(Plan::kThreads, 1) forward_kernel(ForwardParams params) {
  constexpr int K = Plan::K;
  const Problem& p = params.problem;
  const Lane x = Lane::of<Plan>(p);
  const int warp = threadIdx.x / 32;
  const int64_t column = x.column + 16 * warp, own = (x.s * p.HV + x.j) * p.K * p.V + column;
  if (warp >= Plan::kWarps) return walk_loading<Plan>(p, x, p.v, false);
  float state[K / 8][4];
  load_state<K>(state, params.initial ? params.initial + own : nullptr, p.V);
  walk_working<Plan>(x, false, [&](int64_t chunk, const unsigned char* memory, uint32_t stage) {
    const float* factors = reinterpret_cast<const float*>(memory + Plan::kFactors);
    const int count = x.count(chunk);
    const int64_t stride = p.HV * p.V, row = ((x.begin + chunk * kChunk) * p.HV + x.j) * p.V + column;
    bf16* kept = p.states + (((x.slot + chunk) * p.HV + x.j) * p.V + column) * K;
    const uint32_t square = lane_offset<kChunk, true>();
    float r[8][4] = {}, u[8][4] = {}, o[8][4] = {};
    multiply_state<K>(r, state, stage, [&](int n, const uint32_t(&a)[4]) { store_state_fragment(kept, K, n, a); });
    subtract_from_values(r, stage + Plan::kSlices + warp * Plan::kSliceBytes, factors);
#pragma unroll
    for (int l = 0; l < 4; ++l) {
      uint32_t a[4], rest[4], b[4];
      to_fragments(a, rest, r[2 * l], r[2 * l + 1]);
#pragma unroll
      for (int m = l; m < 4; ++m) {
        const uint32_t at = stage + Plan::kInverse + block_at<kChunk>(square, 16 * m, 16 * l);
        device::ldmatrix_x4(b, at);
        mma_two(u[2 * m], u[2 * m + 1], a, b);
        mma_two(u[2 * m], u[2 * m + 1], rest, b);
        device::ldmatrix_x4(b, at + kTileBytes);
        mma_two(u[2 * m], u[2 * m + 1], a, b);
      }
    }
    __syncwarp();  // no product of o starts before: its sums would not fit beside r's
    multiply_state<K>(o, state, stage + Plan::kQuery, [](int, const uint32_t(&)[4]) {});
    scale_tokens(o, factors + kQueryIn * kChunk);
#pragma unroll
    for (int l = 0; l < 4; ++l) {
      uint32_t a[4], rest[4], b[4];
      to_fragments(a, rest, u[2 * l], u[2 * l + 1]);
      store_tokens(p.u + row, stride, count, 16 * l, a[0], a[1]);
      store_tokens(p.u + row, stride, count, 16 * l + 8, a[2], a[3]);
#pragma unroll
      for (int m = l; m < 4; ++m) {
        device::ldmatrix_x4(b, stage + Plan::kScores + block_at<kChunk>(square, 16 * m, 16 * l));
        mma_two(o[2 * m], o[2 * m + 1], a, b);
        mma_two(o[2 * m], o[2 * m + 1], rest, b);
      }
    }
    store_tokens(params.o + row, stride, count, o);
    scale_tokens(u, factors + kKeyOut * kChunk);
    const float total = factors[kTotal * kChunk];
#pragma unroll
    for (int n = 0; n < K / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) state[n][i] *= total;
#pragma unroll
    for (int l = 0; l < 4; ++l) {
      uint32_t a[4], rest[4];
      to_fragments(a, rest, u[2 * l], u[2 * l + 1]);
      update_state<K, true>(state, a, rest, stage, 16 * l);
    }
  });
  store_state<K>(state, params.final_state + own, p.V);
}

template <class Plan>
void launch_plan(Context& ctx, const ForwardParams& params) {
  cuda::launch(ctx.stream(), "gated_delta_rule_forward_walk", &forward_kernel<Plan>, walk_config<Plan>(params.problem), params);
}

}  // namespace

void launch_forward(Context& ctx, const ForwardParams& params) {
  const bool narrow = params.problem.S * params.problem.HV * (params.problem.V / 64) < 132;
  if (params.problem.K == 64) launch_plan<WalkPlan<64, 4, 3>>(ctx, params);
  else if (params.problem.K == 128 && narrow) launch_plan<WalkPlan<128, 2, 3>>(ctx, params);
  else if (params.problem.K == 128) launch_plan<WalkPlan<128, 4, 3>>(ctx, params);
  else if (narrow) launch_plan<WalkPlan<256, 2, 2>>(ctx, params);
  else launch_plan<WalkPlan<256, 4, 2>>(ctx, params);
}

}  // namespace braid::delta_cuda
