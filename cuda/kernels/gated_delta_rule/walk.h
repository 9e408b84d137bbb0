// What the two walks over chunks share: a block walks the chunks of one value head of one sequence, for `warps` × 16 columns of V. A warp
// keeps S^T [16, K] of its columns in registers as the sums of a product, which are at the same time the A fragments of the next:
// nothing passes between warps. kLoaders further warps copy the next chunks into shared memory.
#pragma once
#include "cuda/kernels/gated_delta_rule/chunks.h"
#include "cuda/kernels/gated_delta_rule/tiles.h"
#include "cuda/runtime/check.h"

namespace braid::delta_cuda {

inline constexpr int kLoaders = 4;
inline constexpr int kTileBytes = kSquare * 2;

template <int keys, int warps, int stages>
struct WalkPlan {
  static constexpr int K = keys, kWarps = warps, kStages = stages;
  static constexpr int kThreads = 32 * (warps + kLoaders);
  static constexpr int kRowBytes = kChunk * keys * 2, kSliceBytes = kChunk * 16 * 2;
  // A stage: k, q, A, its rest, P, factors, 16 columns of v (or d_o) for each warp.
  static constexpr int kQuery = kRowBytes, kInverse = 2 * kRowBytes, kScores = kInverse + 2 * kTileBytes, kFactors = kScores + kTileBytes;
  static constexpr int kSlices = kFactors + kNumFactors * kChunk * 4;
  static constexpr int kStageBytes = kSlices + warps * kSliceBytes;
  static constexpr int kSharedBytes = stages * kStageBytes;
};

/// Where a block works.
struct Lane {
  int64_t s, j, head, column, begin, length, slot, chunks;

  template <class Plan>
  __device__ static Lane of(const Problem& p) {
    const int64_t slices = p.V / (16 * Plan::kWarps), s = blockIdx.x / slices / p.HV, j = blockIdx.x / slices % p.HV;
    const int64_t begin = p.cu[s], length = p.cu[s + 1] - begin;
    return {s, j, j / (p.HV / p.H), blockIdx.x % slices * 16 * Plan::kWarps, begin, length, begin / kChunk + s, (length + kChunk - 1) / kChunk};
  }
  __device__ int count(int64_t chunk) const { return static_cast<int>(min(length - chunk * kChunk, int64_t{kChunk})); }
};

/// The loaders' part of chunk `chunk` of the lane; `values` [N, HV, V] (null: zeros) are what the slices come from.
template <class Plan>
__device__ inline void load_stage(const Problem& p, const Lane& x, const bf16* values, int64_t chunk, uint32_t stage) {
  constexpr int kThreads = 32 * kLoaders;
  const int thread = threadIdx.x - 32 * Plan::kWarps, count = x.count(chunk);
  const int64_t first = x.begin + chunk * kChunk, key = (first * p.H + x.head) * p.K, lane = (x.slot + chunk) * p.HV + x.j;
  copy_rows<Plan::K, kThreads>(stage, p.k + key, p.H * p.K, count, thread);
  copy_rows<Plan::K, kThreads>(stage + Plan::kQuery, p.q + key, p.H * p.K, count, thread);
  copy_bytes<3 * kTileBytes, kThreads>(stage + Plan::kInverse, p.squares + lane * 3 * kSquare, thread);
  copy_bytes<kNumFactors * kChunk * 4, kThreads>(stage + Plan::kFactors, p.factors + lane * kNumFactors * kChunk, thread);
  const bf16* from = values ? values + (first * p.HV + x.j) * p.V + x.column : p.k;
#pragma unroll
  for (int at = thread; at < kChunk * 2 * Plan::kWarps; at += kThreads) {
    const int row = at / (2 * Plan::kWarps), piece = at % (2 * Plan::kWarps);
    const bool live = values && row < count;
    const uint32_t to = stage + Plan::kSlices + piece / 2 * Plan::kSliceBytes + tile_offset<16>(row, piece % 2 * 8);
    device::cp_async16(to, from + (live ? row * p.HV * p.V + piece * 8 : 0), live);
  }
}

/// The loaders' walk over the chunks of a block, forwards or backwards. They meet the working warps at one barrier a chunk: behind it the
/// chunk has arrived and the one before it is done with. The two walks are apart so that loaders hold no state in registers.
template <class Plan>
__device__ inline void walk_loading(const Problem& p, const Lane& x, const bf16* values, bool backwards) {
  extern __shared__ __align__(128) unsigned char memory[];
  const uint32_t start = device::shared_address(memory);
  const auto load = [&](int64_t step) {
    if (step < x.chunks)
      load_stage<Plan>(p, x, values, backwards ? x.chunks - 1 - step : step, start + static_cast<int>(step % Plan::kStages) * Plan::kStageBytes);
    device::cp_async_commit();
  };
  for (int step = 0; step < Plan::kStages - 1; ++step) load(step);
  for (int64_t step = 0; step < x.chunks; ++step) {
    device::cp_async_wait<Plan::kStages - 2>();
    __syncthreads();
    load(step + Plan::kStages - 1);
  }
}
/// The working warps' walk: work(chunk, its stage, the stage's address).
template <class Plan, class Work>
__device__ inline void walk_working(const Lane& x, bool backwards, Work&& work) {
  extern __shared__ __align__(128) unsigned char memory[];
  const uint32_t start = device::shared_address(memory);
  int offset = 0;
  for (int64_t step = 0; step < x.chunks; ++step) {
    __syncthreads();
    work(backwards ? x.chunks - 1 - step : step, memory + offset, start + offset);
    offset = offset + Plan::kStageBytes == Plan::kSharedBytes ? 0 : offset + Plan::kStageBytes;
  }
}

/// c [16, 64] += S^T x^T for a tile x [64, K]; each(n, fragment) sees the fragments of S^T as they are made.
template <int K, class Each>
__device__ inline void multiply_state(float (&c)[8][4], const float (&state)[K / 8][4], uint32_t tile, Each&& each) {
  const uint32_t lane = lane_offset<K, true>();
#pragma unroll
  for (int n = 0; n < K / 16; ++n) {
    uint32_t a[4], b[4];
    to_fragment(a, state[2 * n], state[2 * n + 1]);
    each(n, a);
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      device::ldmatrix_x4(b, tile + block_at<K>(lane, 16 * m, 16 * n));
      mma_two(c[2 * m], c[2 * m + 1], a, b);
    }
  }
}

/// S^T [16, K] += a x for 16 tokens, from `token` on, of a tile x [64, K]; `rest` (null: none) is added to a.
template <int K, bool has_rest>
__device__ inline void update_state(float (&state)[K / 8][4], const uint32_t (&a)[4], const uint32_t (&rest)[4], uint32_t tile, int token) {
  const uint32_t lane = lane_offset<K, false>();
#pragma unroll
  for (int n = 0; n < K / 16; ++n) {
    uint32_t b[4];
    device::ldmatrix_x4_transposed(b, tile + block_at<K>(lane, token, 16 * n));
    mma_two(state[2 * n], state[2 * n + 1], a, b);
    if constexpr (has_rest) mma_two(state[2 * n], state[2 * n + 1], rest, b);
  }
}

/// Sums [16 columns, 64 tokens] times a factor of each token.
__device__ inline void scale_tokens(float (&c)[8][4], const float* factor) {
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    const float2 f = *reinterpret_cast<const float2*>(factor + 8 * n + threadIdx.x % 4 * 2);
    c[n][0] *= f.x, c[n][1] *= f.y, c[n][2] *= f.x, c[n][3] *= f.y;
  }
}

/// Writes [16 columns, 8 tokens] as two registers of pairs of tokens to rows `stride` apart; `to` is the first token's row.
__device__ inline void store_tokens(bf16* to, int64_t stride, int count, int token, uint32_t low, uint32_t high) {
  const uint2 four = paired(transposed(low), transposed(high));
  token += threadIdx.x % 32 / 4;
  if (token < count) *reinterpret_cast<uint2*>(to + token * stride + pair_column()) = four;
}
__device__ inline void store_tokens(bf16* to, int64_t stride, int count, const float (&c)[8][4]) {
#pragma unroll
  for (int n = 0; n < 8; ++n) store_tokens(to, stride, count, 8 * n, device::pack_bf16(c[n][0], c[n][1]), device::pack_bf16(c[n][2], c[n][3]));
}

/// Fragments 16 n … of S^T as bf16 to rows [V, K] of a kept state; `to` is row 0 of the warp's columns.
__device__ inline void store_state_fragment(bf16* to, int64_t K, int n, const uint32_t (&a)[4]) {
  bf16* at = to + threadIdx.x % 32 / 4 * K + 16 * n + pair_column();
  *reinterpret_cast<uint2*>(at) = paired(a[0], a[2]);
  *reinterpret_cast<uint2*>(at + 8 * K) = paired(a[1], a[3]);
}

/// S^T of 16 columns from and to a state [K, V] in float32; null: zeros.
template <int K>
__device__ inline void load_state(float (&state)[K / 8][4], const float* from, int64_t V) {
  const int row = threadIdx.x % 32 / 4, pair = threadIdx.x % 4;
#pragma unroll
  for (int n = 0; n < K / 8; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) state[n][i] = from ? from[(8 * n + 2 * pair + i % 2) * V + row + i / 2 * 8] : 0.0f;
}
template <int K>
__device__ inline void store_state(const float (&state)[K / 8][4], float* to, int64_t V) {
  const int row = threadIdx.x % 32 / 4, pair = threadIdx.x % 4;
#pragma unroll
  for (int n = 0; n < K / 8; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) to[(8 * n + 2 * pair + i % 2) * V + row + i / 2 * 8] = state[n][i];
}

/// A block per sequence, value head and slice of V.
template <class Plan>
cuda::LaunchConfig walk_config(const Problem& p) {
  const int64_t blocks = p.S * p.HV * (p.V / (16 * Plan::kWarps));
  return {.grid = static_cast<unsigned>(blocks), .block = Plan::kThreads, .shared_bytes = Plan::kSharedBytes};
}

}  // namespace braid::delta_cuda
