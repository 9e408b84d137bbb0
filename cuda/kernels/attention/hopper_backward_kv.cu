#include "cuda/kernels/attention/fast.h"
#include "cuda/kernels/attention/hopper.h"
#include "cuda/kernels/attention/hopper_backward.h"
#include "cuda/kernels/attention/hopper_host.h"

namespace braid::attention {
namespace {

using namespace hopper;
using device::barrier_wait;

/// At heads of 256 the sums of one gradient fill the registers: a walk for d_k, and one for d_v.
template <bool with_d_k>
struct Plan {
  static constexpr int kDim = 256;
  static constexpr bool kWithDK = with_d_k;
  using Crew = hopper::Crew<2>;
  static constexpr int kKeys = Crew::kRows, kQueries = queries_of_turn(kDim), kStages = 2;
  using Keys = WgmmaTile<kKeys, kDim>;
  using Queries = WgmmaTile<kQueries, kDim>;
  static constexpr int kTileBytes = 2 * Keys::kBytes + 2 * kStages * Queries::kBytes;
  static constexpr int kStatsBytes = (pairs_of(kDim) * 8 + 127) / 128 * 128;
  static constexpr int kSharedBytes = kTileBytes + kStages * kStatsBytes + ItemQueue::kBytes + (2 + 2 * kStages) * 8 + 1024;  // and room to align
};

template <class P>
struct Shared {
  uint32_t base;
  __device__ typename P::Keys k() const { return {base}; }
  __device__ typename P::Keys v() const { return {base + P::Keys::kBytes}; }
  __device__ typename P::Queries q(int stage) const { return {base + 2 * P::Keys::kBytes + 2 * stage * P::Queries::kBytes}; }
  __device__ typename P::Queries d_o(int stage) const { return {base + 2 * P::Keys::kBytes + (2 * stage + 1) * P::Queries::kBytes}; }
  __device__ uint32_t stats(int stage) const { return base + P::kTileBytes + stage * P::kStatsBytes; }
  __device__ ItemQueue items() const { return {stats(P::kStages)}; }
  __device__ uint32_t keys_full() const { return stats(P::kStages) + ItemQueue::kBytes; }
  __device__ uint32_t keys_read() const { return keys_full() + 8; }
  __device__ uint32_t full(int stage) const { return keys_full() + 16 + 16 * stage; }
  __device__ uint32_t read(int stage) const { return full(stage) + 8; }

  __device__ void init_barriers() const {
    items().init_barriers(P::Crew::kWarps);
    device::barrier_init(keys_full(), 1);
    device::barrier_init(keys_read(), P::Crew::kWarps);
    for (int stage = 0; stage < P::kStages; ++stage) {
      device::barrier_init(full(stage), 1);
      device::barrier_init(read(stage), P::Crew::kWarps);
    }
    device::barrier_init_done();
  }
};

/// An item: the keys of a tile of one key head, and the queries that see them, tile by tile of one query head after the other.
struct Work {
  Tile tile;
  Range queries;
  int64_t hk, group, token, count;
  int seen_by, turns;  // queries of a head; tiles of them, of all heads
  int left;            // queries from the first one to the end of the sequence
  int ahead;           // of the first query, from the first key
};

template <class P>
__device__ Work find_work(const Params& params, int64_t item) {
  const Problem& p = params.problem;
  Work work;
  work.hk = item % p.HK, work.group = p.H / p.HK;
  work.tile = find_tile(p, p.cu_k, P::kKeys, item / p.HK);
  work.count = min(int64_t{P::kKeys}, work.tile.lk - work.tile.first);
  work.token = work.tile.k_begin + work.tile.first;
  work.queries = queries_of(p, work.tile, work.tile.first, work.count);
  const int64_t seen_by = work.count > 0 ? max(int64_t{0}, work.queries.end - work.queries.begin) : 0;
  work.turns = static_cast<int>((seen_by + P::kQueries - 1) / P::kQueries * work.group);
  work.seen_by = static_cast<int>(seen_by), work.left = static_cast<int>(work.tile.lq - work.queries.begin);
  work.ahead = static_cast<int>(work.tile.position(work.queries.begin) - work.tile.first);
  return work;
}

/// Where a thread stands in the rings, from item to item.
template <class P>
struct Position {
  Ring<1> keys;
  Ring<P::kStages> queries;
};

template <class P>
__device__ void produce(const Params& params, const Work& work, const Shared<P>& shared, Position<P>& at) {
  barrier_wait(shared.keys_read(), at.keys.parity ^ 1);
  device::barrier_expect(shared.keys_full(), 2 * P::Keys::kBytes);
  copy_tile(shared.k(), params.k, shared.keys_full(), work.hk, work.token);
  copy_tile(shared.v(), params.v, shared.keys_full(), work.hk, work.token);
  at.keys.advance();
  const int64_t token = work.tile.q_begin + work.queries.begin;
#pragma unroll 1  // in few registers
  for (int turn = 0, h = static_cast<int>(work.hk * work.group), first = 0; turn < work.turns; ++turn, at.queries.advance()) {
    const int stage = at.queries.stage;
    const uint32_t barrier = shared.full(stage);
    barrier_wait(shared.read(stage), at.queries.parity ^ 1);
    device::barrier_expect(barrier, 2 * P::Queries::kBytes + pairs_of(P::kDim) * 8);
    copy_tile(shared.q(stage), params.q, barrier, h, token + first);
    copy_tile(shared.d_o(stage), params.d_o, barrier, h, token + first);
    device::tma_load(shared.stats(stage), params.stats, barrier, (static_cast<int>(token) + first) / 2 * 2, h);
    first += P::kQueries;
    if (first >= work.seen_by) first = 0, ++h;
  }
}

/// Adds the turns up. Scores are transposed (a row per key), so that P^T and d_s^T are left operands from registers as they come and nothing
/// but the copies is written to shared memory. At least one turn: with none, zeros and sums would meet where products are under way, and
/// the compiler would make all of them wait.
template <class P>
__device__ void add_turns(const Problem& p, const Work& work, const Shared<P>& shared, Position<P>& at, Sums<P::kDim>& sums) {
  constexpr int D = P::kDim, kQueries = P::kQueries;
  const int lane = threadIdx.x % 32;
  const float scale_log2 = p.scale * kLog2E;
  const int window = static_cast<int>(p.window);
  const uint32_t odd = static_cast<uint32_t>((work.tile.q_begin + work.queries.begin) % 2 * 8);  // pairs are copied from an even one on
  int turn = 0, last_stage = -1, first = 0;                                                      // first: query of the head's
  barrier_wait(shared.keys_full(), at.keys.parity);
  at.keys.advance();
  do {
    const int stage = at.queries.stage;
    const typename P::Queries q = shared.q(stage), d_o = shared.d_o(stage);
    Sums<kQueries> s, d_p;  // fresh in every turn, and products write s and d_p alone, because some are always under way
    Rounded<kQueries> left;
    barrier_wait(shared.full(stage), at.queries.parity);
    if (const int live = work.left - first; live < kQueries) {
      consumers_meet<typename P::Crew>();  // earlier turns have read the pairs: racecheck does not follow the barriers of copies that far
      clear_rows<typename P::Crew>(q, live);
      clear_rows<typename P::Crew>(d_o, live);
      clear_pairs<kQueries>(shared.stats(stage) + odd, live);
      cleared<typename P::Crew>();
    }
    device::wgmma_fence();
    begin_multiply_rows(s, shared.k(), warp_row() / 64 * 64, q);
    device::wgmma_commit();
    if constexpr (P::kWithDK) {
      begin_multiply_rows(d_p, shared.v(), warp_row() / 64 * 64, d_o);
      device::wgmma_commit();
    }
    device::wgmma_wait<P::kWithDK ? 1 : 0>();  // and the products of the turn before
    if (last_stage >= 0) release(shared.read(last_stage));
    last_stage = stage;
    device::settle(s);
    const uint32_t stats = shared.stats(stage) + odd + lane % 4 * 16;
    to_probabilities<kQueries>(s, stats, scale_log2);
    const int ahead = work.ahead + first, count = work.seen_by - first;
    if (count < kQueries || needs_mask(ahead, kQueries, P::kKeys, window)) mask_queries<kQueries>(s, warp_row() - ahead, window, count, 0);
    if constexpr (P::kWithDK) {
      device::wgmma_wait<0>();
      device::settle(d_p);
      if (turn + 1 == work.turns) release(shared.keys_read());  // the next item's come under the end of this one
      to_d_scores<kQueries>(s, d_p, stats);
    }
    round_all<kQueries>(left, s);
    device::wgmma_fence();
    begin_add_product<kQueries, D>(sums, left, P::kWithDK ? q : d_o);
    device::wgmma_commit();
    at.queries.advance();
    first = first + kQueries < work.seen_by ? first + kQueries : 0;
  } while (++turn < work.turns);
  device::wgmma_wait<0>();
  device::settle(sums);
  release(shared.read(last_stage));
  if constexpr (!P::kWithDK) release(shared.keys_read());
}

/// A warpgroup: 64 of the keys.
template <class P>
__device__ void consume(const Problem& p, const Work& work, const Shared<P>& shared, Position<P>& at) {
  constexpr int D = P::kDim;
  Sums<D> sums;
  clear<D>(sums);
  if (work.turns > 0) add_turns<P>(p, work, shared, at, sums);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = warp_row() + threadIdx.x % 32 / 4 + 8 * i;
    if (row >= work.count) continue;
    const int64_t offset = ((work.token + row) * p.HK + work.hk) * D;
    store_row<D>(static_cast<bf16*>(P::kWithDK ? p.d_k : p.d_v) + offset, sums, i, P::kWithDK ? p.scale : 1);
  }
}

template <class P>
__global__ void __launch_bounds__(P::Crew::kThreads, 1) backward_kv_kernel(const __grid_constant__ Params params) {
  if (device::kHopperCode) {
    extern __shared__ uint8_t memory[];
    const Shared<P> shared{(device::shared_address(memory) + 1023) / 1024 * 1024};
    if (threadIdx.x == 0) shared.init_barriers();
    __syncthreads();
    Position<P> at;
    if (threadIdx.x < 128) {
      device::give_registers_up<P::Crew::kCopierRegisters>();
      if (threadIdx.x > 0) return;
      shared.items().give(params, [&](int64_t item) {
        const Work work = find_work<P>(params, item);
        if (work.turns > 0) produce<P>(params, work, shared, at);
      });
    } else {
      device::take_registers<P::Crew::kRegisters>();
      shared.items().take(params, [&](int64_t item) {
        const Work work = find_work<P>(params, item);
        if (work.count > 0) consume<P>(params.problem, work, shared, at);
      });
    }
  }
}

template <bool with_d_k>
void launch_kv(Context& ctx, const Problem& problem) {
  using P = Plan<with_d_k>;
  const int64_t items = num_tiles(problem.Nk, problem.S, P::kKeys) * problem.HK;
  launch_items<P>(ctx, with_d_k ? "attention_hopper_backward_k" : "attention_hopper_backward_v", &backward_kv_kernel<P>, problem, items);
}

}  // namespace

void hopper_backward_kv(Context& ctx, const Problem& problem) {
  if (problem.d_k) launch_kv<true>(ctx, problem);
  if (problem.d_v) launch_kv<false>(ctx, problem);
}

}  // namespace braid::attention
