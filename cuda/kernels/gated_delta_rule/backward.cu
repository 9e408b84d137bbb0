// The backward walk, from the last chunk to the first. Of a chunk with the gradient dS of the state after it, all transposed:
//   dU^T = out ∘ (dS^T k^T) + dO^T P,   dR^T = dU^T A,   dV = beta dR,   dS^T = total dS^T + (q_in ∘ dO^T) q − (beta in ∘ dR^T) k
// dU, A and dR go into products as a bf16 and its rest, as in the forward walk.
#include "cuda/kernels/gated_delta_rule/walk.h"

namespace braid::delta_cuda {
namespace {

/// Fragments of dO^T for 16 tokens, each token times a factor.
__device__ inline void scale_fragment(uint32_t (&a)[4], const uint32_t (&from)[4], const float* factor, int token) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float2 f = *reinterpret_cast<const float2*>(factor + token + 8 * half + threadIdx.x % 4 * 2);
#pragma unroll
    for (int i = 2 * half; i < 2 * half + 2; ++i) a[i] = device::pack_bf16(f.x * device::low_bf16(from[i]), f.y * device::high_bf16(from[i]));
  }
}

template <class Plan>
__global__ void __launch_bounds__(Plan::kThreads, 1) backward_kernel(BackwardParams params) {
  constexpr int K = Plan::K;
  const Problem& p = params.problem;
  const Lane x = Lane::of<Plan>(p);
  const int warp = threadIdx.x / 32;
  const int64_t column = x.column + 16 * warp, own = (x.s * p.HV + x.j) * p.K * p.V + column;
  if (warp >= Plan::kWarps) return walk_loading<Plan>(p, x, params.d_o, true);
  float state[K / 8][4];
  load_state<K>(state, params.d_final ? params.d_final + own : nullptr, p.V);
  walk_working<Plan>(x, true, [&](int64_t chunk, const unsigned char* memory, uint32_t stage) {
    const float* factors = reinterpret_cast<const float*>(memory + Plan::kFactors);
    const int count = x.count(chunk);
    const int64_t stride = p.HV * p.V, row = ((x.begin + chunk * kChunk) * p.HV + x.j) * p.V + column;
    bf16* kept = params.d_states + (((x.slot + chunk) * p.HV + x.j) * p.V + column) * K;
    const uint32_t square = lane_offset<kChunk, false>();
    const uint32_t values = stage + Plan::kSlices + warp * Plan::kSliceBytes + lane_offset<16, true>();
    float u[8][4] = {}, r[8][4] = {};
    multiply_state<K>(u, state, stage, [&](int n, const uint32_t(&a)[4]) { store_state_fragment(kept, K, n, a); });
    scale_tokens(u, factors + kKeyOut * kChunk);
#pragma unroll
    for (int l = 0; l < 4; ++l) {
      uint32_t a[4], b[4];
      device::ldmatrix_x4_transposed(a, values + 16 * l * 32);
#pragma unroll
      for (int m = 0; m <= l; ++m) {
        device::ldmatrix_x4_transposed(b, stage + Plan::kScores + block_at<kChunk>(square, 16 * l, 16 * m));
        mma_two(u[2 * m], u[2 * m + 1], a, b);
      }
    }
#pragma unroll
    for (int l = 0; l < 4; ++l) {
      uint32_t a[4], rest[4], b[4];
      to_fragments(a, rest, u[2 * l], u[2 * l + 1]);
#pragma unroll
      for (int m = 0; m <= l; ++m) {
        const uint32_t at = stage + Plan::kInverse + block_at<kChunk>(square, 16 * l, 16 * m);
        device::ldmatrix_x4_transposed(b, at);
        mma_two(r[2 * m], r[2 * m + 1], a, b);
        mma_two(r[2 * m], r[2 * m + 1], rest, b);
        device::ldmatrix_x4_transposed(b, at + kTileBytes);
        mma_two(r[2 * m], r[2 * m + 1], a, b);
      }
    }
    store_tokens(params.d_r + row, stride, count, r);
    scale_tokens(r, factors + kBeta * kChunk);
    if (params.d_v) store_tokens(params.d_v + row, stride, count, r);
    scale_tokens(r, factors + kKeyIn * kChunk);
    const float total = factors[kTotal * kChunk];
#pragma unroll
    for (int n = 0; n < K / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) state[n][i] *= total;
#pragma unroll
    for (int l = 0; l < 4; ++l) {
      uint32_t a[4], rest[4];
      device::ldmatrix_x4_transposed(rest, values + 16 * l * 32);
      scale_fragment(a, rest, factors + kQueryIn * kChunk, 16 * l);
      update_state<K, false>(state, a, rest, stage + Plan::kQuery, 16 * l);
#pragma unroll
      for (int n = 2 * l; n < 2 * l + 2; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) r[n][i] = -r[n][i];
      to_fragments(a, rest, r[2 * l], r[2 * l + 1]);
      update_state<K, true>(state, a, rest, stage, 16 * l);
    }
  });
  if (params.d_initial) store_state<K>(state, params.d_initial + own, p.V);
}

template <class Plan>
void launch_plan(Context& ctx, const BackwardParams& params) {
  cuda::launch(ctx.stream(), "gated_delta_rule_backward_walk", &backward_kernel<Plan>, walk_config<Plan>(params.problem), params);
}

}  // namespace

void launch_backward(Context& ctx, const BackwardParams& params) {
  const bool narrow = params.problem.S * params.problem.HV * (params.problem.V / 64) < 132;
  if (params.problem.K == 64) launch_plan<WalkPlan<64, 4, 3>>(ctx, params);
  else if (params.problem.K == 128 && narrow) launch_plan<WalkPlan<128, 2, 3>>(ctx, params);
  else if (params.problem.K == 128) launch_plan<WalkPlan<128, 4, 3>>(ctx, params);
  else if (narrow) launch_plan<WalkPlan<256, 2, 2>>(ctx, params);
  else launch_plan<WalkPlan<256, 4, 2>>(ctx, params);
}

}  // namespace braid::delta_cuda
