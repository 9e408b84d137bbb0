#include "cuda/kernels/attention/fast.h"
#include "cuda/kernels/attention/hopper.h"
#include "cuda/kernels/attention/hopper_backward.h"
#include "cuda/kernels/attention/hopper_host.h"

namespace braid::attention {
namespace {

using namespace hopper;
using device::barrier_wait;

constexpr int kKeys = 128, kQueries = 64;

template <int dim>
struct Plan {
  static constexpr int kDim = dim;
  static constexpr int kStages = 4;
  using Keys = WgmmaTile<kKeys, dim>;
  using Queries = WgmmaTile<kQueries, dim>;
  static constexpr int kTileBytes = 2 * Keys::kBytes + 2 * kStages * Queries::kBytes;
  static constexpr int kStatsBytes = (kQueries + 2) * 8;                                                  // from an even pair on
  static constexpr int kSharedBytes = kTileBytes + kStages * kStatsBytes + (1 + 2 * kStages) * 8 + 1024;  // and room to align
};

template <class P>
struct Shared {
  uint32_t base;
  __device__ typename P::Keys k() const { return {base}; }
  __device__ typename P::Keys v() const { return {base + P::Keys::kBytes}; }
  __device__ typename P::Queries q(int stage) const { return {base + 2 * P::Keys::kBytes + 2 * stage * P::Queries::kBytes}; }
  __device__ typename P::Queries d_o(int stage) const { return {base + 2 * P::Keys::kBytes + (2 * stage + 1) * P::Queries::kBytes}; }
  __device__ uint32_t stats(int stage) const { return base + P::kTileBytes + stage * P::kStatsBytes; }
  __device__ uint32_t keys_full() const { return stats(P::kStages); }
  __device__ uint32_t full(int stage) const { return keys_full() + 8 + 16 * stage; }
  __device__ uint32_t read(int stage) const { return full(stage) + 8; }

  __device__ void init_barriers() const {
    device::barrier_init(keys_full(), 1);
    for (int stage = 0; stage < P::kStages; ++stage) {
      device::barrier_init(full(stage), 1);
      device::barrier_init(read(stage), kConsumers / 32);
    }
    device::barrier_init_done();
  }
};

/// What a block works on: 128 keys of a key head, and the queries that see them, tile by tile of one query head after the other.
struct Work {
  Tile tile;
  Range queries;
  int64_t hk, group, token, count;
  int per_head, turns;

  __device__ int64_t query(int turn) const { return queries.begin + int64_t{turn % per_head} * kQueries; }
  __device__ int64_t head(int turn) const { return hk * group + turn / per_head; }
};

__device__ Work find_work(const Problem& p) {
  Work work;
  work.hk = blockIdx.x % p.HK, work.group = p.H / p.HK;
  work.tile = find_tile(p, p.cu_k, kKeys, blockIdx.x / p.HK);
  work.count = min(int64_t{kKeys}, work.tile.lk - work.tile.first);
  work.token = work.tile.k_begin + work.tile.first;
  work.queries = queries_of(p, work.tile, work.tile.first, work.count);
  const int64_t seen_by = max(int64_t{0}, work.queries.end - work.queries.begin);
  work.per_head = static_cast<int>((seen_by + kQueries - 1) / kQueries);
  work.turns = work.per_head * static_cast<int>(work.group);
  return work;
}

template <class P>
__device__ void produce(const Params& params, const Work& work, const Shared<P>& shared) {
  device::barrier_expect(shared.keys_full(), 2 * P::Keys::kBytes);
  copy_tile(shared.k(), params.k, shared.keys_full(), work.hk, work.token);
  copy_tile(shared.v(), params.v, shared.keys_full(), work.hk, work.token);
  Ring<P::kStages> ring;
  for (int turn = 0; turn < work.turns; ++turn, ring.advance()) {
    const int64_t h = work.head(turn), token = work.tile.q_begin + work.query(turn);
    const uint32_t barrier = shared.full(ring.stage);
    barrier_wait(shared.read(ring.stage), ring.parity ^ 1);
    device::barrier_expect(barrier, 2 * P::Queries::kBytes + P::kStatsBytes);
    copy_tile(shared.q(ring.stage), params.q, barrier, h, token);
    copy_tile(shared.d_o(ring.stage), params.d_o, barrier, h, token);
    device::bulk_load(shared.stats(ring.stage), stats_of(params.problem, h, token / 2 * 2), P::kStatsBytes, barrier);
  }
}

__device__ float2 load_pair(uint32_t address) {
  float2 pair;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(pair.x), "=f"(pair.y) : "r"(address));
  return pair;
}

/// Adds the turns up. Scores are transposed (a row per key), so that P^T and d_s^T are left operands from registers as they come and nothing
/// but the copies is written to shared memory. At least one turn: with none, zeros and sums would meet where products are under way, and
/// the compiler would make all of them wait.
template <class P>
__device__ void add_turns(const Problem& p, const Work& work, const Shared<P>& shared, int warp_row, Sums<P::kDim>& d_k, Sums<P::kDim>& d_v) {
  constexpr int D = P::kDim;
  const int lane = threadIdx.x % 32;
  const float scale_log2 = p.scale * kLog2E;
  Ring<P::kStages> ring;
  int turn = 0, last_stage = -1;
  barrier_wait(shared.keys_full(), 0);
  do {
    const typename P::Queries q = shared.q(ring.stage), d_o = shared.d_o(ring.stage);
    Sums<kQueries> s, d_p;  // fresh in every turn, and products write s and d_p alone, because some are always under way
    Rounded<kQueries> weights, d_s;
    barrier_wait(shared.full(ring.stage), ring.parity);
    device::wgmma_fence();
    begin_multiply_rows(s, shared.k(), warp_row / 64 * 64, q);
    device::wgmma_commit();
    begin_multiply_rows(d_p, shared.v(), warp_row / 64 * 64, d_o);
    device::wgmma_commit();
    device::wgmma_wait<1>();  // and the products of the turn before
    if (last_stage >= 0) release(shared.read(last_stage));
    last_stage = ring.stage;
    device::settle(s);
    const int64_t query = work.query(turn), position = work.tile.position(query);
    const uint32_t stats = shared.stats(ring.stage) + static_cast<uint32_t>((work.tile.q_begin + query) % 2 * 8) + lane % 4 * 16;
#pragma unroll
    for (int j = 0; j < kQueries / 8; ++j)
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float lse = load_pair(stats + 64 * j + 8 * c).x;
        s[j][c] = exp2_approx(s[j][c] * scale_log2 - lse);
        s[j][2 + c] = exp2_approx(s[j][2 + c] * scale_log2 - lse);
      }
    if (query + kQueries > work.queries.end || !all_visible(p, position, position + kQueries - 1, work.tile.first, kKeys))
      mask_queries<kQueries>(s, static_cast<int>(work.tile.first - position) + warp_row, static_cast<int>(p.window),
                             static_cast<int>(min(int64_t{kQueries}, work.queries.end - query)), 0);
    round_all<kQueries>(weights, s);
    device::wgmma_fence();
    begin_add_product<kQueries, D>(d_v, weights, d_o);
    device::wgmma_commit();
    device::wgmma_wait<1>();
    device::settle(d_p);
#pragma unroll
    for (int j = 0; j < kQueries / 8; ++j)
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float delta = load_pair(stats + 64 * j + 8 * c).y;
        s[j][c] *= d_p[j][c] - delta;
        s[j][2 + c] *= d_p[j][2 + c] - delta;
      }
    round_all<kQueries>(d_s, s);
    device::wgmma_wait<0>();  // d_v is done by now; its weights give their registers to the next scores
    device::wgmma_fence();
    begin_add_product<kQueries, D>(d_k, d_s, q);
    device::wgmma_commit();
    ring.advance();
  } while (++turn < work.turns);
  device::wgmma_wait<0>();
  device::settle(d_k);
  device::settle(d_v);
}

/// A warpgroup: 64 of the keys.
template <class P>
__device__ void consume(const Problem& p, const Work& work, const Shared<P>& shared) {
  constexpr int D = P::kDim;
  const int warp_row = 64 * (threadIdx.x / 128 - 1) + threadIdx.x % 128 / 32 * 16;
  Sums<D> d_k, d_v;
  clear<D>(d_k);
  clear<D>(d_v);
  if (work.turns > 0) add_turns<P>(p, work, shared, warp_row, d_k, d_v);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = warp_row + threadIdx.x % 32 / 4 + 8 * i;
    if (row >= work.count) continue;
    const int64_t offset = ((work.token + row) * p.HK + work.hk) * D;
    if (p.d_k) store_row<D>(static_cast<bf16*>(p.d_k) + offset, d_k, i, p.scale);
    if (p.d_v) store_row<D>(static_cast<bf16*>(p.d_v) + offset, d_v, i, 1);
  }
}

template <class P>
__global__ void __launch_bounds__(kThreads, 1) backward_kv_kernel(const __grid_constant__ Params params) {
  if (device::kHopperCode) {
    extern __shared__ uint8_t memory[];
    const Shared<P> shared{(device::shared_address(memory) + 1023) / 1024 * 1024};
    const Work work = find_work(params.problem);
    if (work.tile.first >= work.tile.lk) return;
    if (threadIdx.x == 0) shared.init_barriers();
    __syncthreads();
    if (threadIdx.x < 128) {
      device::give_registers_up<24>();
      if (threadIdx.x == 0) produce<P>(params, work, shared);
    } else {
      device::take_registers<240>();
      consume<P>(params.problem, work, shared);
    }
  }
}

template <int D>
void launch_kv(Context& ctx, const Problem& problem) {
  using P = Plan<D>;
  const int64_t blocks = num_tiles(problem.Nk, problem.S, kKeys) * problem.HK;
  const cuda::LaunchConfig config = {.grid = static_cast<unsigned>(blocks), .block = kThreads, .shared_bytes = P::kSharedBytes};
  cuda::launch(ctx.stream(), "attention_hopper_backward_kv", &backward_kv_kernel<P>, config, params_for(problem));
}

}  // namespace

void hopper_backward_kv(Context& ctx, const Problem& problem) {
  if (problem.D == 64) launch_kv<64>(ctx, problem);
  else launch_kv<128>(ctx, problem);
}

}  // namespace braid::attention
