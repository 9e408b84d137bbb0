// The backward walk, from the last chunk to the first. Of a chunk with the gradient dS of the state after it, all transposed:
//   dU^T = out ∘ (dS^T k^T) + dO^T P,   dR^T = dU^T A,   dV = beta dR,   dS^T = total dS^T + (q_in ∘ dO^T) q − (beta in ∘ dR^T) k
// With a decay per channel out, q_in and in are inside the rows of k and q (`decayed`), total is a factor of each channel.
// dU, A and dR go into products as a bf16 and its rest, as in the forward walk, dS (for dU) and P where keys repeat. Writers store dS, dR and dV.
#include "cuda/kernels/gated_delta_rule/areas.h"
#include "cuda/kernels/gated_delta_rule/products.h"
#include "cuda/kernels/gated_delta_rule/store.h"

namespace braid::delta_cuda {
namespace {

template <int keys, int groups, int members, int stages, bool by_channel>
struct BackwardPlan : WalkPlan<keys, groups, members, by_channel, 3> {
  using Walk = WalkPlan<keys, groups, members, by_channel, 3>;
  static constexpr int kStages = stages;
  // A stage: k, q, A, its rest, P, its rest, factors, d_o. With decays per channel k_out, its rest, P and its rest come early, as does d_o, which is
  // needed to the end and has two places; a stage is k_in, q_in, A, its rest, factors.
  static constexpr int kEarlyValues = 2 * Walk::kRowBytes + 2 * kTriangleBytes, kValueBytes = groups * kSliceBytes;
  static constexpr int kFirstStage = by_channel ? kEarlyValues + 2 * kValueBytes : 0;
  static constexpr int kQuery = Walk::kRowBytes, kInverse = 2 * Walk::kRowBytes, kScores = by_channel ? kInverse : kInverse + 2 * kTriangleBytes;
  static constexpr int kFactors = kInverse + (by_channel ? 2 : 4) * kTriangleBytes;
  static constexpr int kValues = kFactors + kFactorBytes, kStageBytes = kValues + (by_channel ? 0 : kValueBytes);
  static constexpr int kPlaces = kFirstStage + stages * kStageBytes, kBarriers = kPlaces + groups * Walk::kPublished;
  static constexpr int kSharedBytes = kBarriers + Walk::kBarrierBytes;
  static_assert(kSharedBytes <= 227 * 1024);
};

template <class Plan>
__device__ inline void load_chunks(const BackwardParams& params, const Lane& x, uint32_t start) {
  const Problem& p = params.problem;
  const int thread = threadIdx.x - 32 * (Plan::kStateWarps + Plan::kGroups);
  const auto load = [&](int64_t step) {
    if (step < x.chunks) {
      const uint32_t stage = start + static_cast<int>(step % Plan::kStages) * Plan::kStageBytes;
      const int64_t chunk = x.chunks - 1 - step, lane = (x.slot + chunk) * p.HV + x.j;
      load_keys<Plan>(p, x, p.k, chunk, stage, thread);
      load_keys<Plan>(p, x, p.q, chunk, stage + Plan::kQuery, thread);
      copy_bytes<4 * kTriangleBytes, Plan::kLoaderThreads>(stage + Plan::kInverse, p.triangles + lane * 4 * kTriangle, thread);
      copy_bytes<kFactorBytes, Plan::kLoaderThreads>(stage + Plan::kFactors, p.factors + lane * kNumFactors * kChunk, thread);
      load_values<Plan>(p, x, params.d_o, chunk, stage + Plan::kValues, thread);
    }
    device::cp_async_commit();
  };
  for (int step = 0; step < Plan::kStages - 1; ++step) load(step);
  for (int64_t step = 0; step < x.chunks; ++step) {
    device::cp_async_wait<Plan::kStages - 2>();
    __syncthreads();
    load(step + Plan::kStages - 1);
  }
  __syncthreads();
}

template <class Plan>
__device__ inline void load_channel_chunks(const BackwardParams& params, const Lane& x, uint32_t start) {
  const Problem& p = params.problem;
  const int thread = threadIdx.x - 32 * (Plan::kStateWarps + Plan::kGroups);
  const auto lane_of = [&](int64_t chunk) { return (x.slot + chunk) * p.HV + x.j; };
  const auto triangles_of = [&](int64_t chunk) { return p.triangles + lane_of(chunk) * 4 * kTriangle; };
  const auto stage_of = [&](int64_t step) { return start + Plan::kFirstStage + static_cast<int>(step % Plan::kStages) * Plan::kStageBytes; };
  const auto load_early = [&](int64_t step) {
    const int64_t chunk = x.chunks - 1 - step;
    load_decayed<Plan>(p, x, kKeysOut, chunk, start, thread);
    load_decayed<Plan>(p, x, kKeysOutRest, chunk, start + Plan::kRowBytes, thread);
    copy_bytes<2 * kTriangleBytes, Plan::kLoaderThreads>(start + Plan::kScores, triangles_of(chunk) + 2 * kTriangle, thread);
    load_values<Plan>(p, x, params.d_o, chunk, start + Plan::kEarlyValues + static_cast<int>(step % 2) * Plan::kValueBytes, thread);
  };
  const auto load_middle = [&](int64_t step) {
    const int64_t chunk = x.chunks - 1 - step;
    copy_bytes<2 * kTriangleBytes, Plan::kLoaderThreads>(stage_of(step) + Plan::kInverse, triangles_of(chunk), thread);
    copy_bytes<kFactorBytes, Plan::kLoaderThreads>(stage_of(step) + Plan::kFactors, p.factors + lane_of(chunk) * kNumFactors * kChunk, thread);
  };
  const auto load_late = [&](int64_t step) {
    const int64_t chunk = x.chunks - 1 - step;
    load_decayed<Plan>(p, x, kKeysIn, chunk, stage_of(step), thread);
    load_decayed<Plan>(p, x, kQueriesIn, chunk, stage_of(step) + Plan::kQuery, thread);
  };
  load_areas<Plan>(start, x.chunks, Loads{load_early, load_middle, load_late, [](int64_t) {}});
}

/// Fragments of dO^T for 16 tokens, each token times a factor.
__device__ inline void scale_fragment(uint32_t (&a)[4], const float* factor, int token) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float2 f = *reinterpret_cast<const float2*>(factor + token + 8 * half + threadIdx.x % 4 * 2);
#pragma unroll
    for (int i = 2 * half; i < 2 * half + 2; ++i) a[i] = device::pack_bf16(f.x * device::low_bf16(a[i]), f.y * device::high_bf16(a[i]));
  }
}

/// u += dO^T P, shared out to the members.
template <class Plan>
__device__ inline void add_outputs(float (&u)[8][4], uint32_t values, uint32_t scores, int member) {
  const uint32_t block = scores + lane_offset<16, false>();
#pragma unroll
  for (int l = 0; l < 4; ++l) {
    if (Plan::kMembers == 2 && member != (l % 3 != 0)) continue;  // 1 + 4 blocks and 2 + 3
    uint32_t a[4], b[4];
    device::ldmatrix_x4_transposed(a, values + 16 * l * 32);
#pragma unroll
    for (int m = 0; m <= l; ++m) {
      device::ldmatrix_x4_transposed(b, block + triangle_block(l, m));
      mma_two(u[2 * m], u[2 * m + 1], a, b);
    }
  }
}

template <class Plan>
__device__ inline void walk_states(const BackwardParams& params, const Lane& x, const Group<Plan>& group, const unsigned char* memory,
                                   uint32_t start) {
  constexpr int keys = Plan::kKeys;
  const Problem& p = params.problem;
  const int64_t own = ((x.s * p.HV + x.j) * p.K + group.member * keys) * p.V + x.column + 16 * group.group;
  float state[keys / 8][4];
  load_state<keys>(state, params.d_final ? params.d_final + own : nullptr, p.V);
  int offset = Plan::kFirstStage;
  unsigned all_repeats = 0;
  for (int64_t step = 0; step < x.chunks; ++step) {
    __syncthreads();
    const int64_t chunk = x.chunks - 1 - step;
    if (step == 0 || chunk % 32 == 31) all_repeats = x.repeats(p, chunk);
    const bool repeats = all_repeats >> chunk % 32 & 1;
    const uint32_t stage = start + offset;
    const uint32_t all_values =
        Plan::kByChannel ? start + Plan::kEarlyValues + static_cast<int>(step % 2) * Plan::kValueBytes : stage + Plan::kValues;
    const uint32_t values = all_values + group.group * kSliceBytes + lane_offset<16, true>();
    const uint32_t key_tile = stage + group.member * keys * 2, early = Plan::kByChannel ? start : stage;
    const float* factors = reinterpret_cast<const float*>(memory + offset + Plan::kFactors);
    float u[8][4] = {}, r[8][4] = {};
    uint32_t fragments[keys / 16][4];
    to_state_fragments<keys>(fragments, state);
    multiply_state<Plan::K, keys, Plan::kByChannel>(u, fragments, early + group.member * keys * 2);
    if (repeats) multiply_state_rest<Plan::K, keys>(u, state, early + group.member * keys * 2);
    if constexpr (!Plan::kByChannel) scale_each(u, factors + kKeyOut * kChunk);
    add_outputs<Plan>(u, values, early + Plan::kScores, group.member);
    if (repeats) add_outputs<Plan>(u, values, early + Plan::kScores + kTriangleBytes, group.member);
    leave_early<Plan>(start);
    group.add_up(u, step);
    group.publish_state(fragments);
    reach<Plan>(start, kMiddle, step);
    decay_state<Plan>(state, factors, group.member);
    multiply_inverse<true>(r, u, stage + Plan::kInverse);
#pragma unroll
    for (int l = 0; l < 4; ++l) {
      uint32_t a[4];
      to_fragment(a, r[2 * l], r[2 * l + 1]);
      if (Plan::kMembers == 1 || group.member == 0) group.publish(Plan::kStateFragments, l, a);
    }
    if (group.member == 0 && repeats) {
#pragma unroll
      for (int l = 0; l < 4; ++l) {
        uint32_t a[4], rest[4];
        to_fragments(a, rest, r[2 * l], r[2 * l + 1]);
        group.publish(Plan::kStateFragments + 2 * kPublishedBytes, l, rest);
      }
    }
    scale_each(r, factors + kBeta * kChunk);
#pragma unroll
    for (int l = 0; l < 4; ++l) {
      uint32_t a[4];
      to_fragment(a, r[2 * l], r[2 * l + 1]);
      if (Plan::kMembers == 1 || group.member == 1) group.publish(Plan::kStateFragments + kPublishedBytes, l, a);
    }
    if constexpr (!Plan::kByChannel) scale_each(r, factors + kKeyIn * kChunk);
    reach<Plan>(start, kLate, step);
#pragma unroll
    for (int l = 0; l < 4; ++l) {
      uint32_t a[4], rest[4];
      device::ldmatrix_x4_transposed(a, values + 16 * l * 32);
      if constexpr (!Plan::kByChannel) scale_fragment(a, factors + kQueryIn * kChunk, 16 * l);
      update_state<Plan::K, keys, false>(state, a, a, key_tile + Plan::kQuery, 16 * l);
#pragma unroll
      for (int n = 2 * l; n < 2 * l + 2; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) r[n][i] = -r[n][i];
      to_fragments(a, rest, r[2 * l], r[2 * l + 1]);
      update_state<Plan::K, keys, true>(state, a, rest, key_tile, 16 * l);
    }
    offset = offset + Plan::kStageBytes == Plan::kPlaces ? Plan::kFirstStage : offset + Plan::kStageBytes;
  }
  __syncthreads();
  if (params.d_initial) store_state<keys>(state, params.d_initial + own, p.V);
}

template <class Plan>
__device__ inline void write_gradients(const BackwardParams& params, const Lane& x, const Group<Plan>& group) {
  constexpr int K = Plan::K;
  const Problem& p = params.problem;
  const int64_t column = x.column + 16 * group.group, stride = p.HV * p.V;
  __syncthreads();
  if (x.chunks > 0) group.copied();
  unsigned all_repeats = 0;
  for (int64_t chunk = x.chunks - 1; chunk >= 0; --chunk) {
    __syncthreads();
    uint32_t state[K / 16][4], r[4][4], v[4][4], rest[4][4];
    if (chunk == x.chunks - 1 || chunk % 32 == 31) all_repeats = x.repeats(p, chunk);
    const bool repeats = all_repeats >> chunk % 32 & 1;
#pragma unroll
    for (int n = 0; n < K / 16; ++n) group.copy(0, n, state[n]);
#pragma unroll
    for (int l = 0; l < 4; ++l) group.copy(Plan::kStateFragments, l, r[l]), group.copy(Plan::kStateFragments + kPublishedBytes, l, v[l]);
    if (repeats) {
#pragma unroll
      for (int l = 0; l < 4; ++l) group.copy(Plan::kStateFragments + 2 * kPublishedBytes, l, rest[l]);
    }
    if (chunk > 0) group.copied();
    const int64_t row = (x.first(chunk) * p.HV + x.j) * p.V + column;
    const int count = x.count(chunk);
    bf16* kept = params.d_states + (((x.slot + chunk) * p.HV + x.j) * p.V + column) * K;
#pragma unroll
    for (int n = 0; n < K / 16; ++n) store_state_fragment(kept, K, n, state[n]);
#pragma unroll
    for (int l = 0; l < 4; ++l) store_fragment(params.d_r + row, stride, count, 16 * l, r[l]);
    if (repeats) {
#pragma unroll
      for (int l = 0; l < 4; ++l) store_digits(params.d_r_rest + row, stride, count, 16 * l, r[l], rest[l]);
    }
    if (!params.d_v) continue;
#pragma unroll
    for (int l = 0; l < 4; ++l) store_fragment(params.d_v + row, stride, count, 16 * l, v[l]);
  }
}

template <class Plan>
__global__ void __launch_bounds__(Plan::kThreads, 1) backward_kernel(BackwardParams params) {
  extern __shared__ __align__(128) unsigned char memory[];
  const uint32_t start = device::shared_address(memory);
  const Lane x = Lane::of<Plan>(params.problem);
  const int warp = threadIdx.x / 32, writer = warp - Plan::kStateWarps;
  init_barriers<Plan>(start);
  if (writer >= Plan::kGroups) {
    if constexpr (Plan::kByChannel) return load_channel_chunks<Plan>(params, x, start);
    else return load_chunks<Plan>(params, x, start);
  }
  const int group = writer < 0 ? warp / Plan::kMembers : writer;
  const Group<Plan> place(group, warp % Plan::kMembers, memory);
  if (writer < 0) walk_states<Plan>(params, x, place, memory, start);
  else write_gradients<Plan>(params, x, place);
}

template <class Plan>
void launch_plan(Context& ctx, const BackwardParams& params) {
  const Problem& p = params.problem;
  const unsigned blocks = static_cast<unsigned>(p.S * p.HV * (p.V / (16 * Plan::kGroups)));
  const cuda::LaunchConfig config{.grid = blocks, .block = Plan::kThreads, .shared_bytes = Plan::kSharedBytes};
  cuda::launch(ctx.stream(), "gated_delta_rule_backward_walk", &backward_kernel<Plan>, config, params);
}

}  // namespace

void launch_backward(Context& ctx, const BackwardParams& params) {
  const bool narrow = is_narrow(params.problem), by_channel = params.problem.channel_decay;
  switch (params.problem.K) {
    case 64:
      return by_channel ? launch_plan<BackwardPlan<64, 4, 1, 2, true>>(ctx, params) : launch_plan<BackwardPlan<64, 4, 1, 3, false>>(ctx, params);
    case 128:
      if (narrow && by_channel) return launch_plan<BackwardPlan<128, 2, 2, 2, true>>(ctx, params);
      if (narrow) return launch_plan<BackwardPlan<128, 2, 2, 3, false>>(ctx, params);
      return by_channel ? launch_plan<BackwardPlan<128, 4, 1, 2, true>>(ctx, params) : launch_plan<BackwardPlan<128, 4, 1, 2, false>>(ctx, params);
    default:
      return by_channel ? launch_plan<BackwardPlan<256, 2, 2, 1, true>>(ctx, params) : launch_plan<BackwardPlan<256, 2, 2, 2, false>>(ctx, params);
  }
}

}  // namespace braid::delta_cuda
