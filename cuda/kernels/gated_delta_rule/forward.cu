// The forward walk. Of a chunk with the state S before it, all transposed (columns of V are rows), with X = beta (v − k⁺ S):
//   X^T = beta (v^T − in ∘ S^T k^T),   U^T = X^T A^T,   S^T = total S^T + (out ∘ U^T) k           members
//   O^T = q_in ∘ (S^T q^T) + U^T P^T                                                               writers
// With a decay per channel in, out and q_in are inside the rows of k and q (`decayed`), total is a factor of each channel.
// X, A and U go into products as a bf16 and its rest: what they are wrong by never leaves the state. So does P where keys
// repeat: the signs of U may then alternate, and what P is wrong by is a part of numbers larger than O. Writers store O, S and U.
#include "cuda/kernels/gated_delta_rule/areas.h"
#include "cuda/kernels/gated_delta_rule/products.h"
#include "cuda/kernels/gated_delta_rule/store.h"

namespace braid::delta_cuda {
namespace {

template <int keys, int groups, int members, int stages, bool by_channel>
struct ForwardPlan : WalkPlan<keys, groups, members, by_channel, 2> {
  using Walk = WalkPlan<keys, groups, members, by_channel, 2>;
  static constexpr int kStages = stages;
  // A member's stage: k, A, its rest, factors, v. A writer's: q, P, its rest, q_in. With decays per channel k_in and v come early, and a stage is
  // k_out, its rest, A, its rest, factors; a writer's: q_in, P, its rest.
  static constexpr int kFirstStage = by_channel ? Walk::kRowBytes + groups * kSliceBytes : 0;
  static constexpr bool kScoresRest = by_channel && keys < 256;  // of every chunk, not only where keys repeat
  static constexpr int kInverse = (by_channel ? 2 : 1) * Walk::kRowBytes, kFactors = kInverse + 2 * kTriangleBytes;
  static constexpr int kValues = by_channel ? Walk::kRowBytes : kFactors + kFactorBytes;
  static constexpr int kStageBytes = kFactors + kFactorBytes + (by_channel ? 0 : groups * kSliceBytes);
  static constexpr int kScores = Walk::kRowBytes, kQueryFactors = kScores + 2 * kTriangleBytes;
  static constexpr int kWriterBytes = kQueryFactors + (by_channel ? 0 : kChunk * 4);
  static constexpr int kWriters = kFirstStage + stages * kStageBytes, kPlaces = kWriters + 2 * kWriterBytes;
  static constexpr int kBarriers = kPlaces + groups * Walk::kPublished, kSharedBytes = kBarriers + Walk::kBarrierBytes;
  static_assert(kSharedBytes <= 227 * 1024);
};

template <class Plan>
__device__ inline void load_chunks(const ForwardParams& params, const Lane& x, uint32_t start) {
  const Problem& p = params.problem;
  const int thread = threadIdx.x - 32 * (Plan::kStateWarps + Plan::kGroups);
  const auto load_stage = [&](int64_t chunk) {
    if (chunk < x.chunks) {
      const uint32_t stage = start + static_cast<int>(chunk % Plan::kStages) * Plan::kStageBytes;
      const int64_t lane = (x.slot + chunk) * p.HV + x.j;
      load_keys<Plan>(p, x, p.k, chunk, stage, thread);
      copy_bytes<2 * kTriangleBytes, Plan::kLoaderThreads>(stage + Plan::kInverse, p.triangles + lane * 4 * kTriangle, thread);
      copy_bytes<kFactorBytes, Plan::kLoaderThreads>(stage + Plan::kFactors, p.factors + lane * kNumFactors * kChunk, thread);
      load_values<Plan>(p, x, p.v, chunk, stage + Plan::kValues, thread);
    }
    device::cp_async_commit();
  };
  const auto load_writers = [&](int64_t chunk) {
    const uint32_t stage = start + Plan::kWriters + static_cast<int>(chunk % 2) * Plan::kWriterBytes;
    const int64_t lane = (x.slot + chunk) * p.HV + x.j;
    load_keys<Plan>(p, x, p.q, chunk, stage, thread);
    copy_bytes<2 * kTriangleBytes, Plan::kLoaderThreads>(stage + Plan::kScores, p.triangles + (lane * 4 + 2) * kTriangle, thread);
    copy_bytes<kChunk * 4, Plan::kLoaderThreads>(stage + Plan::kQueryFactors, p.factors + (lane * kNumFactors + kQueryIn) * kChunk, thread);
    device::cp_async_commit();
  };
  for (int chunk = 0; chunk < Plan::kStages - 1; ++chunk) load_stage(chunk);
  for (int64_t chunk = 0; chunk <= x.chunks; ++chunk) {
    device::cp_async_wait<Plan::kStages - 2>();
    __syncthreads();
    if (chunk == x.chunks) break;
    load_writers(chunk);
    load_stage(chunk + Plan::kStages - 1);
  }
}

template <class Plan>
__device__ inline void load_channel_chunks(const ForwardParams& params, const Lane& x, uint32_t start) {
  const Problem& p = params.problem;
  const int thread = threadIdx.x - 32 * (Plan::kStateWarps + Plan::kGroups);
  const auto lane_of = [&](int64_t chunk) { return (x.slot + chunk) * p.HV + x.j; };
  const auto stage_of = [&](int64_t chunk) { return start + Plan::kFirstStage + static_cast<int>(chunk % Plan::kStages) * Plan::kStageBytes; };
  const auto load_early = [&](int64_t chunk) {
    load_decayed<Plan>(p, x, kKeysIn, chunk, start, thread);
    load_values<Plan>(p, x, p.v, chunk, start + Plan::kValues, thread);
  };
  const auto load_middle = [&](int64_t chunk) {
    copy_bytes<2 * kTriangleBytes, Plan::kLoaderThreads>(stage_of(chunk) + Plan::kInverse, p.triangles + lane_of(chunk) * 4 * kTriangle, thread);
    copy_bytes<kFactorBytes, Plan::kLoaderThreads>(stage_of(chunk) + Plan::kFactors, p.factors + lane_of(chunk) * kNumFactors * kChunk, thread);
  };
  const auto load_late = [&](int64_t chunk) {
    load_decayed<Plan>(p, x, kKeysOut, chunk, stage_of(chunk), thread);
    load_decayed<Plan>(p, x, kKeysOutRest, chunk, stage_of(chunk) + Plan::kRowBytes, thread);
  };
  const auto load_writers = [&](int64_t chunk) {
    const uint32_t stage = start + Plan::kWriters + static_cast<int>(chunk % 2) * Plan::kWriterBytes;
    load_decayed<Plan>(p, x, kQueriesIn, chunk, stage, thread);
    copy_bytes<2 * kTriangleBytes, Plan::kLoaderThreads>(stage + Plan::kScores, p.triangles + (lane_of(chunk) * 4 + 2) * kTriangle, thread);
  };
  load_areas<Plan>(start, x.chunks, Loads{load_early, load_middle, load_late, load_writers});
}

/// r = beta (v − in r), v the group's own 16 columns; without_in: r = beta (v − r).
template <bool without_in>
__device__ inline void subtract_from_values(float (&r)[8][4], uint32_t values, const float* factors) {
#pragma unroll
  for (int m = 0; m < 4; ++m) {
    uint32_t v[4];
    device::ldmatrix_x4_transposed(v, values + lane_offset<16, true>() + 16 * m * 32);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int n = 2 * m + half, token = 8 * n + threadIdx.x % 4 * 2;
      const float2 in = without_in ? make_float2(1, 1) : *reinterpret_cast<const float2*>(factors + kKeyIn * kChunk + token);
      const float2 beta = *reinterpret_cast<const float2*>(factors + kWrittenBeta * kChunk + token);
      r[n][0] = beta.x * (device::low_bf16(v[2 * half]) - in.x * r[n][0]);
      r[n][1] = beta.y * (device::high_bf16(v[2 * half]) - in.y * r[n][1]);
      r[n][2] = beta.x * (device::low_bf16(v[2 * half + 1]) - in.x * r[n][2]);
      r[n][3] = beta.y * (device::high_bf16(v[2 * half + 1]) - in.y * r[n][3]);
    }
  }
}

template <class Plan>
__device__ inline void walk_states(const ForwardParams& params, const Lane& x, const Group<Plan>& group, const unsigned char* memory,
                                   uint32_t start) {
  constexpr int keys = Plan::kKeys;
  const Problem& p = params.problem;
  const int64_t own = ((x.s * p.HV + x.j) * p.K + group.member * keys) * p.V + x.column + 16 * group.group;
  float state[keys / 8][4];
  load_state<keys>(state, params.initial ? params.initial + own : nullptr, p.V);
  int stage = Plan::kFirstStage;
  for (int64_t chunk = 0; chunk < x.chunks; ++chunk) {
    __syncthreads();
    const uint32_t key_tile = start + stage + group.member * keys * 2, early = start + (Plan::kByChannel ? 0 : stage);
    const float* factors = reinterpret_cast<const float*>(memory + stage + Plan::kFactors);
    float r[8][4] = {}, u[8][4] = {};
    uint32_t fragments[keys / 16][4];
    to_state_fragments<keys>(fragments, state);
    multiply_state<Plan::K, keys>(r, fragments, early + group.member * keys * 2);
    group.add_up(r, chunk);
    group.publish_state(fragments);
    reach<Plan>(start, kMiddle, chunk);
    subtract_from_values<Plan::kByChannel>(r, early + Plan::kValues + group.group * kSliceBytes, factors);
    leave_early<Plan>(start);
    multiply_inverse<false>(u, r, start + stage + Plan::kInverse);
    decay_state<Plan>(state, factors, group.member);
#pragma unroll
    for (int l = 0; l < 4; ++l) {
      uint32_t a[4], rest[4];
      to_fragments(a, rest, u[2 * l], u[2 * l + 1]);
      if (Plan::kMembers == 1 || group.member == 0) group.publish(Plan::kStateFragments, l, a);
      if (Plan::kMembers == 1 || group.member == 1) group.publish(Plan::kStateFragments + kPublishedBytes, l, rest);
    }
    if constexpr (!Plan::kByChannel) scale_each(u, factors + kKeyOut * kChunk);
    reach<Plan>(start, kLate, chunk);
#pragma unroll
    for (int l = 0; l < 4; ++l) {
      uint32_t a[4], rest[4];
      to_fragments(a, rest, u[2 * l], u[2 * l + 1]);
      update_state<Plan::K, keys, true, Plan::kByChannel>(state, a, rest, key_tile, 16 * l);
    }
    stage = stage + Plan::kStageBytes == Plan::kWriters ? Plan::kFirstStage : stage + Plan::kStageBytes;
  }
  __syncthreads();
  store_state<keys>(state, params.final_state + own, p.V);
}

template <class Plan>
__device__ inline void write_outputs(const ForwardParams& params, const Lane& x, const Group<Plan>& group, const unsigned char* memory,
                                     uint32_t start) {
  constexpr int K = Plan::K;
  const Problem& p = params.problem;
  const int64_t column = x.column + 16 * group.group, stride = p.HV * p.V;
  __syncthreads();
  if (x.chunks > 0) group.copied();
  unsigned all_repeats = 0;
  for (int64_t chunk = 0; chunk < x.chunks; ++chunk) {
    __syncthreads();
    if (chunk % 32 == 0) all_repeats = x.repeats(p, chunk);
    const bool repeats = all_repeats >> chunk % 32 & 1;
    uint32_t state[K / 16][4], u[4][4], rest[4][4];
#pragma unroll
    for (int n = 0; n < K / 16; ++n) group.copy(0, n, state[n]);
#pragma unroll
    for (int l = 0; l < 4; ++l) group.copy(Plan::kStateFragments, l, u[l]), group.copy(Plan::kStateFragments + kPublishedBytes, l, rest[l]);
    if (chunk + 1 < x.chunks) group.copied();
    const int offset = Plan::kWriters + static_cast<int>(chunk % 2) * Plan::kWriterBytes, count = x.count(chunk);
    float o[8][4] = {};
    multiply_state<K, K>(o, state, start + offset);
    if constexpr (!Plan::kByChannel) scale_each(o, reinterpret_cast<const float*>(memory + offset + Plan::kQueryFactors));
    const uint32_t scores = start + offset + Plan::kScores + lane_offset<16, true>();
#pragma unroll
    for (int l = 0; l < 4; ++l)
#pragma unroll
      for (int m = l; m < 4; ++m) {
        uint32_t b[4];
        device::ldmatrix_x4(b, scores + triangle_block(m, l));
        mma_two(o[2 * m], o[2 * m + 1], u[l], b);
        mma_two(o[2 * m], o[2 * m + 1], rest[l], b);
        if (!Plan::kScoresRest && !repeats) continue;
        device::ldmatrix_x4(b, scores + triangle_block(m, l) + kTriangleBytes);
        mma_two(o[2 * m], o[2 * m + 1], u[l], b);
      }
    const int64_t row = (x.first(chunk) * p.HV + x.j) * p.V + column;
    bf16* kept = p.states + (((x.slot + chunk) * p.HV + x.j) * p.V + column) * K;
#pragma unroll
    for (int n = 0; n < K / 16; ++n) store_state_fragment(kept, K, n, state[n]);
#pragma unroll
    for (int l = 0; l < 4; ++l) store_fragment(p.u + row, stride, count, 16 * l, u[l]);
    if (repeats) {
#pragma unroll
      for (int l = 0; l < 4; ++l) store_digits(p.u_rest + row, stride, count, 16 * l, u[l], rest[l]);
    }
    store_sums(params.o + row, stride, count, o);
  }
}

template <class Plan>
__global__ void __launch_bounds__(Plan::kThreads, 1) forward_kernel(ForwardParams params) {
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
  else write_outputs<Plan>(params, x, place, memory, start);
}

template <class Plan>
void launch_plan(Context& ctx, const ForwardParams& params) {
  const Problem& p = params.problem;
  const unsigned blocks = static_cast<unsigned>(p.S * p.HV * (p.V / (16 * Plan::kGroups)));
  const cuda::LaunchConfig config{.grid = blocks, .block = Plan::kThreads, .shared_bytes = Plan::kSharedBytes};
  cuda::launch(ctx.stream(), "gated_delta_rule_forward_walk", &forward_kernel<Plan>, config, params);
}

}  // namespace

void launch_forward(Context& ctx, const ForwardParams& params) {
  const bool narrow = is_narrow(params.problem), by_channel = params.problem.channel_decay;
  switch (params.problem.K) {
    case 64:
      return by_channel ? launch_plan<ForwardPlan<64, 4, 1, 2, true>>(ctx, params) : launch_plan<ForwardPlan<64, 4, 1, 3, false>>(ctx, params);
    case 128:
      if (narrow && by_channel) return launch_plan<ForwardPlan<128, 2, 2, 2, true>>(ctx, params);
      if (narrow) return launch_plan<ForwardPlan<128, 2, 2, 3, false>>(ctx, params);
      return by_channel ? launch_plan<ForwardPlan<128, 4, 1, 2, true>>(ctx, params) : launch_plan<ForwardPlan<128, 4, 1, 3, false>>(ctx, params);
    default:
      return by_channel ? launch_plan<ForwardPlan<256, 2, 2, 1, true>>(ctx, params) : launch_plan<ForwardPlan<256, 2, 2, 2, false>>(ctx, params);
  }
}

}  // namespace braid::delta_cuda
