#include "cuda/kernels/attention/fast.h"
#include "cuda/kernels/attention/softmax.h"
#include "cuda/runtime/check.h"

namespace braid::attention {
namespace {

constexpr int kThreads = 128, kRows = 64;  // rows: the block's own queries or keys

template <int dim>
struct QueryPlan {
  static constexpr int kDim = dim;
  static constexpr int kKeys = dim > 128 ? 32 : 64;
  using Queries = SharedTile<kRows, dim>;
  using Keys = SharedTile<kKeys, dim>;
  static constexpr int kSharedBytes = 2 * Queries::kBytes + 4 * Keys::kBytes;
};

// d_q = scale · Σ_j P_j (<d_o, v_j> − delta) k_j: the forward's walk with P from the saved lse.
template <class P>
__global__ void __launch_bounds__(kThreads, P::kDim > 64 ? 1 : 2) backward_q_kernel(Problem p) {
  extern __shared__ __align__(128) uint8_t shared[];
  constexpr int D = P::kDim, kKeys = P::kKeys;
  const uint32_t base = device::shared_address(shared);
  const typename P::Queries q{base}, d_o{base + P::Queries::kBytes};
  const auto keys_at = [&](int stage) { return typename P::Keys{base + 2 * P::Queries::kBytes + 2 * stage * P::Keys::kBytes}; };
  const auto values_at = [&](int stage) { return typename P::Keys{base + 2 * P::Queries::kBytes + (2 * stage + 1) * P::Keys::kBytes}; };

  const int64_t tiles = gridDim.x / p.H, h = blockIdx.x % p.H, hk = h / (p.H / p.HK);
  const Tile tile = find_tile(p, p.cu_q, kRows, tiles - 1 - blockIdx.x / p.H);
  if (tile.first >= tile.lq) return;
  const int64_t count = min(int64_t{kRows}, tile.lq - tile.first), token = tile.q_begin + tile.first;
  const Range keys = keys_of(p, tile, tile.first, count);
  const int64_t first_position = tile.position(tile.first), q_stride = p.H * D, k_stride = p.HK * D;
  const bf16* k_from = static_cast<const bf16*>(p.k) + (tile.k_begin * p.HK + hk) * D;
  const bf16* v_from = static_cast<const bf16*>(p.v) + (tile.k_begin * p.HK + hk) * D;
  const int num_tiles = static_cast<int>((keys.end - keys.begin + kKeys - 1) / kKeys);
  const auto load_keys = [&](int t) {
    const int64_t key = keys.begin + int64_t{t} * kKeys;
    keys_at(t % 2).template load<kThreads>(k_from + key * k_stride, k_stride, keys.end - key);
    values_at(t % 2).template load<kThreads>(v_from + key * k_stride, k_stride, keys.end - key);
  };
  q.template load<kThreads>(static_cast<const bf16*>(p.q) + (token * p.H + h) * D, q_stride, count);
  d_o.template load<kThreads>(static_cast<const bf16*>(p.d_o) + (token * p.H + h) * D, q_stride, count);
  load_keys(num_tiles - 1);
  device::cp_async_commit();

  const int row = threadIdx.x / 32 * 16;
  const float scale_log2 = p.scale * kLog2E;
  float2 stats[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int r = row + threadIdx.x % 32 / 4 + 8 * i;
    stats[i] = r < count ? *stats_of(p, h, token + r) : float2{0, 0};
  }
  Sums<D> d_q;
  clear<D>(d_q);
  for (int t = num_tiles - 1; t >= 0; --t) {
    if (t > 0) load_keys(t - 1);
    device::cp_async_commit();
    device::cp_async_wait<1>();
    __syncthreads();
    Sums<kKeys> s, d_p;
    multiply_rows<kRows, kKeys, D>(s, q, row, keys_at(t % 2));
    multiply_rows<kRows, kKeys, D>(d_p, d_o, row, values_at(t % 2));
    const int64_t key = keys.begin + int64_t{t} * kKeys;
    if (!all_visible(p, first_position, first_position + kRows - 1, key, kKeys))
      mask_keys<kKeys>(s, static_cast<int>(first_position - key) + row, static_cast<int>(p.window), -INFINITY);
#pragma unroll
    for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) s[j][i] = exp2_approx(s[j][i] * scale_log2 - stats[i / 2].x) * (d_p[j][i] - stats[i / 2].y);
    add_product<kKeys, D>(d_q, s, keys_at(t % 2));
    __syncthreads();  // this stage is read
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int r = row + threadIdx.x % 32 / 4 + 8 * i;
    if (r < count) store_row<D>(static_cast<bf16*>(p.d_q) + ((token + r) * p.H + h) * D, d_q, i, p.scale);
  }
}

/// Both gradients in one walk up to heads of 128; above, the sums of one fill the registers and there is a walk for each.
template <int dim, bool with_d_k, bool with_d_v>
struct KeyPlan {
  static constexpr int kDim = dim;
  static constexpr bool kWithDK = with_d_k, kWithDV = with_d_v;
  static constexpr int kQueries = dim > 64 ? 32 : 64;
  using Keys = SharedTile<kRows, dim>;
  using Queries = SharedTile<kQueries, dim>;
  static constexpr int kStatsBytes = kQueries * 8;
  static constexpr int kStageBytes = 2 * Queries::kBytes + kStatsBytes;
  static constexpr int kSharedBytes = 2 * Keys::kBytes + 2 * kStageBytes;
};

// d_v_j = Σ P_j d_o, d_k_j = scale · Σ d_s_j q. A block has 64 keys of a key head, a warp 16 of them, and walks the queries that see
// them, of one query head of the group after the other. Scores are transposed (a row per key), so that P^T and d_s^T are left operands as
// they come.
template <class P>
__global__ void __launch_bounds__(kThreads) backward_kv_kernel(Problem p) {
  extern __shared__ __align__(128) uint8_t shared[];
  constexpr int D = P::kDim, kQueries = P::kQueries;
  const uint32_t base = device::shared_address(shared);
  const typename P::Keys k{base}, v{base + P::Keys::kBytes};
  const auto stage_at = [&](int stage) { return 2 * P::Keys::kBytes + stage * P::kStageBytes; };

  const int64_t hk = blockIdx.x % p.HK, group = p.H / p.HK;
  const Tile tile = find_tile(p, p.cu_k, kRows, blockIdx.x / p.HK);
  if (tile.first >= tile.lk) return;
  const int64_t count = min(int64_t{kRows}, tile.lk - tile.first), token = tile.k_begin + tile.first;
  const int64_t q_stride = p.H * D, k_stride = p.HK * D;
  const Range queries = queries_of(p, tile, tile.first, count);
  const int per_head = queries.end > queries.begin ? static_cast<int>((queries.end - queries.begin + kQueries - 1) / kQueries) : 0;
  const int turns = per_head * static_cast<int>(group);
  const auto load_queries = [&](int turn) {
    const int64_t h = hk * group + turn / per_head, query = queries.begin + int64_t{turn % per_head} * kQueries, first = tile.q_begin + query;
    const int64_t live = queries.end - query;
    const uint32_t at = base + stage_at(turn % 2);
    const int64_t offset = (first * p.H + h) * D;
    typename P::Queries{at}.template load<kThreads>(static_cast<const bf16*>(p.q) + offset, q_stride, live);
    typename P::Queries{at + P::Queries::kBytes}.template load<kThreads>(static_cast<const bf16*>(p.d_o) + offset, q_stride, live);
    if (threadIdx.x < kQueries)
      device::cp_async8(at + 2 * P::Queries::kBytes + threadIdx.x * 8, stats_of(p, h, first) + min(int64_t{threadIdx.x}, live - 1));
  };
  k.template load<kThreads>(static_cast<const bf16*>(p.k) + (token * p.HK + hk) * D, k_stride, count);
  v.template load<kThreads>(static_cast<const bf16*>(p.v) + (token * p.HK + hk) * D, k_stride, count);
  if (turns > 0) load_queries(0);
  device::cp_async_commit();

  const int row = threadIdx.x / 32 * 16, lane = threadIdx.x % 32;
  const float scale_log2 = p.scale * kLog2E;
  Sums<P::kWithDK ? D : 8> d_k;
  Sums<P::kWithDV ? D : 8> d_v;
  clear<P::kWithDK ? D : 8>(d_k);
  clear<P::kWithDV ? D : 8>(d_v);
  for (int turn = 0; turn < turns; ++turn) {
    if (turn + 1 < turns) load_queries(turn + 1);
    device::cp_async_commit();
    device::cp_async_wait<1>();
    __syncthreads();
    const uint32_t at = base + stage_at(turn % 2);
    const typename P::Queries q{at}, d_o{at + P::Queries::kBytes};
    const float4* stats = reinterpret_cast<const float4*>(shared + stage_at(turn % 2) + 2 * P::Queries::kBytes) + lane % 4;
    Sums<kQueries> s;
    multiply_rows<kRows, kQueries, D>(s, k, row, q);
    const int64_t query = queries.begin + int64_t{turn % per_head} * kQueries;
    const bool masked =
        query + kQueries > queries.end || !all_visible(p, tile.position(query), tile.position(query) + kQueries - 1, tile.first, kRows);
    if (masked)
      mask_queries<kQueries>(s, static_cast<int>(tile.first - tile.position(query)) + row, static_cast<int>(p.window),
                             static_cast<int>(min(int64_t{kQueries}, queries.end - query)), -INFINITY);
#pragma unroll
    for (int j = 0; j < kQueries / 8; ++j) {
      const float4 two = stats[4 * j];  // of this thread's two columns
#pragma unroll
      for (int i = 0; i < 4; ++i) s[j][i] = exp2_approx(s[j][i] * scale_log2 - (i % 2 ? two.z : two.x));
    }
    if constexpr (P::kWithDV) add_product<kQueries, D>(d_v, s, d_o);
    if constexpr (P::kWithDK) {
      Sums<kQueries> d_p;
      multiply_rows<kRows, kQueries, D>(d_p, v, row, d_o);
#pragma unroll
      for (int j = 0; j < kQueries / 8; ++j) {
        const float4 two = stats[4 * j];
#pragma unroll
        for (int i = 0; i < 4; ++i) s[j][i] *= d_p[j][i] - (i % 2 ? two.w : two.y);
      }
      add_product<kQueries, D>(d_k, s, q);
    }
    __syncthreads();  // this stage is read
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int r = row + lane / 4 + 8 * i;
    if (r >= count) continue;
    const int64_t offset = ((token + r) * p.HK + hk) * D;
    if constexpr (P::kWithDK)
      if (p.d_k) store_row<D>(static_cast<bf16*>(p.d_k) + offset, d_k, i, p.scale);
    if constexpr (P::kWithDV)
      if (p.d_v) store_row<D>(static_cast<bf16*>(p.d_v) + offset, d_v, i, 1);
  }
}

template <int D>
void launch_q(Context& ctx, const Problem& problem) {
  using P = QueryPlan<D>;
  const int64_t blocks = num_tiles(problem.Nq, problem.S, kRows) * problem.H;
  const cuda::LaunchConfig config = {.grid = static_cast<unsigned>(blocks), .block = kThreads, .shared_bytes = P::kSharedBytes};
  cuda::launch(ctx.stream(), "attention_mma_backward_q", &backward_q_kernel<P>, config, problem);
}

template <int D, bool with_d_k, bool with_d_v>
void launch_kv(Context& ctx, const Problem& problem) {
  using P = KeyPlan<D, with_d_k, with_d_v>;
  const int64_t blocks = num_tiles(problem.Nk, problem.S, kRows) * problem.HK;
  const cuda::LaunchConfig config = {.grid = static_cast<unsigned>(blocks), .block = kThreads, .shared_bytes = P::kSharedBytes};
  cuda::launch(ctx.stream(), "attention_mma_backward_kv", &backward_kv_kernel<P>, config, problem);
}

}  // namespace

void mma_backward(Context& ctx, const Problem& problem) {
  if (problem.d_q) {
    if (problem.D == 64) launch_q<64>(ctx, problem);
    else if (problem.D == 128) launch_q<128>(ctx, problem);
    else launch_q<256>(ctx, problem);
  }
  if (problem.D == 256) {
    if (problem.d_k) launch_kv<256, true, false>(ctx, problem);
    if (problem.d_v) launch_kv<256, false, true>(ctx, problem);
  } else if (problem.d_k || problem.d_v) {
    if (problem.D == 64) launch_kv<64, true, true>(ctx, problem);
    else launch_kv<128, true, true>(ctx, problem);
  }
}

}  // namespace braid::attention
