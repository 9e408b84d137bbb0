#include "cuda/device/scalar.h"
#include "cuda/kernels/attention/fast.h"
#include "cuda/kernels/attention/hopper.h"
#include "cuda/kernels/attention/hopper_backward.h"
#include "cuda/kernels/attention/hopper_host.h"

namespace braid::attention {
namespace {

using namespace hopper;
using device::barrier_wait;

/// All three gradients in one walk. A block has 128 keys, a warpgroup 64 of them; of d_q a warpgroup makes [64, 64]: at heads of 128 half of the
/// columns of 64 queries, at heads of 64 all columns of half of the 128 queries.
template <int dim>
struct Plan {
  static constexpr int kDim = dim;
  using Crew = hopper::Crew<2>;
  static constexpr int kKeys = Crew::kRows, kQueries = queries_of_turn(dim);
  using Keys = WgmmaTile<kKeys, dim>;
  using Queries = WgmmaTile<kQueries, dim>;
  using Scores = WgmmaTile<kKeys, kQueries>;
  static constexpr int kPartBytes = 64 * 64 * 4;  // of d_q, a warpgroup's
  static constexpr int kTileBytes = 2 * Keys::kBytes + Scores::kBytes + 2 * (2 * kPartBytes + 2 * Queries::kBytes);
  static constexpr int kStatsBytes = (pairs_of(dim) * 8 + 127) / 128 * 128;
  static constexpr int kWorkBytes = 48, kWorkReaders = Crew::kThreads - 128 + 64, kBarriers = 17;  // readers: consumers and two warps that add
  static constexpr int kSharedBytes = kTileBytes + 2 * (kStatsBytes + kWorkBytes) + kBarriers * 8 + 1024;  // and room to align
};

/// What all blocks of a call share beside the operands.
struct JointParams {
  Params base;
  float* d_q;           // [H, D / 64, Nq, 64], not scaled; of token n the 8 columns j are where j ^ n % 8 would be. Null: not wanted
  unsigned* added;      // [H, query_tiles]: tiles of keys that have added to d_q of a tile of queries; zero at the start
  int64_t query_tiles;  // sequence s has those from cu_q[s] / kQueries + s on
};

/// Everything there is two of is used in turns: stages of queries and areas of d_q from turn to turn, works from item to item.
template <class P>
struct Shared {
  uint32_t base;
  static constexpr uint32_t kScores = 2 * P::Keys::kBytes, kAreas = kScores + P::Scores::kBytes, kQueries = kAreas + 4 * P::kPartBytes;
  __device__ typename P::Keys k() const { return {base}; }
  __device__ typename P::Keys v() const { return {base + P::Keys::kBytes}; }
  __device__ typename P::Scores d_s() const { return {base + kScores}; }
  __device__ uint32_t part(int area, int i) const { return base + kAreas + (2 * area + i) * P::kPartBytes; }
  __device__ typename P::Queries q(int stage) const { return {base + kQueries + 2 * stage * P::Queries::kBytes}; }
  __device__ typename P::Queries d_o(int stage) const { return {base + kQueries + (2 * stage + 1) * P::Queries::kBytes}; }
  __device__ uint32_t stats(int stage) const { return base + P::kTileBytes + stage * P::kStatsBytes; }
  __device__ uint32_t work(int i) const { return stats(2) + i * P::kWorkBytes; }
  __device__ uint32_t barrier(int i) const { return work(2) + 8 * i; }
  __device__ uint32_t keys_full() const { return barrier(0); }
  __device__ uint32_t k_read() const { return barrier(1); }
  __device__ uint32_t v_read() const { return barrier(2); }
  __device__ uint32_t d_s_full() const { return barrier(3); }
  __device__ uint32_t d_s_read() const { return barrier(4); }
  __device__ uint32_t area_full(int i) const { return barrier(5 + i); }
  __device__ uint32_t area_read(int i) const { return barrier(7 + i); }
  __device__ uint32_t full(int i) const { return barrier(9 + i); }
  __device__ uint32_t read(int i) const { return barrier(11 + i); }
  __device__ uint32_t work_full(int i) const { return barrier(13 + i); }
  __device__ uint32_t work_read(int i) const { return barrier(15 + i); }

  __device__ void init_barriers() const {
    constexpr int kWarps = P::Crew::kWarps;
    device::barrier_init(keys_full(), 1);
    for (uint32_t of_consumers : {k_read(), v_read(), d_s_full(), d_s_read()}) device::barrier_init(of_consumers, kWarps);
    for (int i = 0; i < 2; ++i) {
      device::barrier_init(area_full(i), kWarps);
      device::barrier_init(area_read(i), 1);
      device::barrier_init(full(i), 1);
      device::barrier_init(read(i), kWarps);
      device::barrier_init(work_full(i), 1);
      device::barrier_init(work_read(i), P::kWorkReaders);
    }
    device::barrier_init_done();
  }
};

/// An item: the keys of a tile of one key head, and the tiles of queries that see them, the last one first, of all query heads of the group.
/// Tiles of queries are counted from the start of the sequence: those of all tiles of keys are the same.
struct Work {
  int hk, group;
  int token, count;  // of the keys
  int q_begin, lq;   // of the sequence's queries
  int tile, turns;   // of queries: the last one that sees the keys; how many, of all heads of the group. No turns: nobody sees them; −1: the end
  int ahead;         // of query 0, from the first key
  int key_tile;      // which one of the sequence
  int query_tiles;   // of the sequences before, as JointParams::added counts
  int unused;
};

template <class P>
__device__ Work find_work(const Params& params, int64_t item) {
  if (item >= params.items) return {.turns = -1};
  const Problem& p = params.problem;
  const Tile tile = find_tile(p, p.cu_k, P::kKeys, item / p.HK);
  const int64_t count = min(int64_t{P::kKeys}, tile.lk - tile.first);
  const Range queries = queries_of(p, tile, tile.first, count);
  const int begin = static_cast<int>(queries.begin / P::kQueries), end = static_cast<int>((queries.end + P::kQueries - 1) / P::kQueries);
  const int group = static_cast<int>(p.H / p.HK);
  return {.hk = static_cast<int>(item % p.HK),
          .group = group,
          .token = static_cast<int>(tile.k_begin + tile.first),
          .count = static_cast<int>(count),
          .q_begin = static_cast<int>(tile.q_begin),
          .lq = static_cast<int>(tile.lq),
          .tile = end - 1,
          .turns = count > 0 && queries.begin < queries.end ? (end - begin) * group : 0,
          .ahead = static_cast<int>(tile.position(0) - tile.first),
          .key_tile = static_cast<int>(tile.first / P::kKeys),
          .query_tiles = static_cast<int>(tile.q_begin / P::kQueries + tile.s)};
}

__device__ inline void store_work(uint32_t to, const Work& work) {
  const auto* from = reinterpret_cast<const int*>(&work);
#pragma unroll
  for (int i = 0; i < 12; i += 4)
    asm volatile("st.shared.v4.s32 [%0], {%1, %2, %3, %4};" ::"r"(to + 4 * i), "r"(from[i]), "r"(from[i + 1]), "r"(from[i + 2]), "r"(from[i + 3])
                 : "memory");
}
__device__ inline Work load_work(uint32_t from) {
  Work work;
  auto* to = reinterpret_cast<int*>(&work);
#pragma unroll
  for (int i = 0; i < 12; i += 4)
    asm volatile("ld.shared.v4.s32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[i]), "=r"(to[i + 1]), "=r"(to[i + 2]), "=r"(to[i + 3])
                 : "r"(from + 4 * i)
                 : "memory");
  return work;
}

/// How many turns and items with turns were before, and so which of two and which parity is next.
struct Position {
  unsigned turn = 0, keys = 0;
};
__device__ inline uint32_t parity_of(unsigned count) { return count / 2 % 2; }

/// body(turn, h, tile of queries) for the turns of an item.
template <class Body>
__device__ void for_turns(const Work& work, Body&& body) {
  int tile = work.tile, h = 0;
#pragma unroll 1  // in few registers
  for (int turn = 0; turn < work.turns; ++turn) {
    body(turn, work.hk * work.group + h, tile);
    if (++h == work.group) h = 0, --tile;
  }
}

template <class P>
__device__ void produce(const Params& params, const Work& work, const Shared<P>& shared, Position& at) {
  for_turns(work, [&](int turn, int h, int tile) {
    const int stage = at.turn % 2, token = work.q_begin + tile * P::kQueries;
    const uint32_t barrier = shared.full(stage);
    barrier_wait(shared.read(stage), parity_of(at.turn) ^ 1);
    device::barrier_expect(barrier, 2 * P::Queries::kBytes + pairs_of(P::kDim) * 8);
    copy_tile(shared.q(stage), params.q, barrier, h, token);
    copy_tile(shared.d_o(stage), params.d_o, barrier, h, token);
    device::tma_load(shared.stats(stage), params.stats, barrier, token / 2 * 2, h);
    ++at.turn;
    if (turn > 0) return;
    barrier_wait(shared.v_read(), at.keys % 2 ^ 1);
    device::barrier_expect(shared.keys_full(), 2 * P::Keys::kBytes);
    copy_tile(shared.v(), params.v, shared.keys_full(), work.hk, work.token);
    barrier_wait(shared.k_read(), at.keys % 2 ^ 1);
    copy_tile(shared.k(), params.k, shared.keys_full(), work.hk, work.token);
    ++at.keys;
  });
}

/// One thread takes the items, each only when the copies of the one before have begun: when it begins, those of lower numbers have, or are about to.
template <class P>
__device__ void give_items(const Params& params, const Shared<P>& shared) {
  Position at;
  for (unsigned i = 0;; ++i) {
    const Work work = find_work<P>(params, atomicAdd(params.taken, 1u));
    barrier_wait(shared.work_read(i % 2), parity_of(i) ^ 1);
    store_work(shared.work(i % 2), work);
    device::barrier_arrive(shared.work_full(i % 2));
    if (work.turns < 0) return;
    produce<P>(params, work, shared, at);
  }
}

/// body(where the item's Work is) for each item; a warp calls it. Every thread reads the work, and every thread arrives: of one arrival for a warp
/// racecheck does not see that it is behind the others' reads.
template <class P, class Body>
__device__ void take_items(const Shared<P>& shared, Body&& body) {
  for (unsigned i = 0;; ++i) {
    barrier_wait(shared.work_full(i % 2), parity_of(i));
    if (load_work(shared.work(i % 2)).turns < 0) return;
    body(shared.work(i % 2));
    __syncwarp();
    device::barrier_arrive(shared.work_read(i % 2));
  }
}

__device__ inline unsigned load_acquire(const unsigned* from) {
  unsigned value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}
__device__ inline void store_release(unsigned* to, unsigned value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}

/// One thread for each area: adds the parts of d_q up in global memory. The tiles of keys that a tile of queries sees do so from the first one on:
/// an item waits only for items of lower numbers, which other blocks have begun before. The first one stores, so that nothing must be zero before.
template <class P>
__device__ void add_parts(const JointParams& params, const Work& work, const Shared<P>& shared, int area, Position& at) {
  const Problem& p = params.base.problem;
  constexpr int kColumnParts = P::kDim / 64;
  const int window = static_cast<int>(p.window);
  for_turns(work, [&](int, int h, int tile) {
    const uint32_t parity = parity_of(at.turn);
    if (static_cast<int>(at.turn++ % 2) != area) return;
    const int first = tile * P::kQueries;
    const int first_key = window > 0 ? max(0, work.key_tile * P::kKeys + work.ahead + first - window + 1) : 0;  // that they see
    const unsigned before = work.key_tile - first_key / P::kKeys;
    unsigned* const added = params.added + h * params.query_tiles + work.query_tiles + tile;
    if (params.d_q && before > 0) {
      while (load_acquire(added) != before) continue;
      device::fence_async_proxy_global();
    }
    barrier_wait(shared.area_full(area), parity);
    if (params.d_q) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int row = kColumnParts == 1 ? first + 64 * i : first, rows = min(64, work.lq - row);
        if (rows <= 0) continue;
        float* const to = params.d_q + ((int64_t{h} * kColumnParts + (kColumnParts == 1 ? 0 : i)) * p.Nq + work.q_begin + row) * 64;
        if (before > 0) device::bulk_add(to, shared.part(area, i), rows * 256);
        else device::bulk_store(to, shared.part(area, i), rows * 256);
      }
      device::bulk_commit();
      device::bulk_wait_read();
    }
    device::barrier_arrive(shared.area_read(area));
    if (params.d_q) {
      device::bulk_wait();
      store_release(added, before + 1);
    }
  });
}

/// This warp's 16 rows of d_s^T to shared memory.
template <int kQueries, int kKeys>
__device__ void store_scores(const WgmmaTile<kKeys, kQueries>& tile, const Rounded<kQueries>& d_s) {
  const int lane = threadIdx.x % 32, row = warp_row() + lane % 16;
  const uint32_t address = tile.base + row * 128 + (lane / 16 ^ (row & 7)) * 16;
#pragma unroll
  for (int step = 0; step < kQueries / 16; ++step) device::stmatrix_x4((address + step / 4 * tile.kChunkBytes) ^ (step % 4 * 32), d_s[step]);
}

/// This warpgroup's part of d_q to its area; `token` is that of its first row.
__device__ inline void store_part(uint32_t part, const Sums<64>& d_q, int token) {
  const int lane = threadIdx.x % 32, row = warp_row() % 64 + lane / 4;
  const uint32_t address = part + row * 256 + (token + row) % 8 * 32 + lane % 4 * 8;
#pragma unroll
  for (int j = 0; j < 8; ++j)
#pragma unroll
    for (int i = 0; i < 2; ++i)
      asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"((address ^ (j * 32)) + i * 2048), "f"(d_q[j][2 * i]), "f"(d_q[j][2 * i + 1]) : "memory");
}

/// As WgmmaTile's, with what differs from step to step a constant that is added to the lower word, so that little stands between products.
struct Operand {
  uint32_t low;
  __device__ uint64_t at(uint32_t bytes) const {
    constexpr uint64_t kHigh = uint64_t{1024 >> 4 | 1 << 30} << 32;
    return kHigh | (low + (bytes >> 4));
  }
};
template <int kRows, int D>
__device__ Operand rows_of(const WgmmaTile<kRows, D>& tile, int row) {
  return {(tile.base + row * 128) >> 4 | 1 << 16};
}
template <int kRows, int D>
__device__ Operand columns_of(const WgmmaTile<kRows, D>& tile, int column) {
  constexpr uint32_t kChunk = WgmmaTile<kRows, D>::kChunkBytes >> 4;
  return {(tile.base + column / 64 * tile.kChunkBytes) >> 4 | kChunk << 16};
}

/// Begins s = left · right^T.
template <int kColumns, int D, int kLeft>
__device__ void begin_scores(Sums<kColumns>& s, const WgmmaTile<kLeft, D>& left, int row, const WgmmaTile<kColumns, D>& right) {
  const Operand a = rows_of(left, row), b = rows_of(right, 0);
#pragma unroll
  for (int step = 0; step < D / 16; ++step)
    device::wgmma<false>(s, a.at(step / 4 * left.kChunkBytes + step % 4 * 32), b.at(step / 4 * right.kChunkBytes + step % 4 * 32), step > 0);
}
/// Begins sums += a · right.
template <int kInner, int D>
__device__ void begin_add(Sums<D>& sums, const Rounded<kInner>& a, const Operand& right) {
#pragma unroll
  for (int step = 0; step < kInner / 16; ++step) device::wgmma<true>(sums, a[step], right.at(step * 2048), 1);
}

/// Adds the turns up. Scores are transposed (a row per key), so that P^T and d_s^T are left operands from registers as they come; d_s^T goes to
/// shared memory too, where both warpgroups read all of it for d_q. At least one turn: with none, zeros and sums would meet where products are
/// under way, and the compiler would make all of them wait.
template <class P>
__device__ void add_turns(const Problem& p, const Work& work, const Shared<P>& shared, Position& at, Sums<P::kDim>& d_k, Sums<P::kDim>& d_v) {
  using Crew = typename P::Crew;
  constexpr int D = P::kDim, kQueries = P::kQueries;
  const int lane = threadIdx.x % 32,
            group = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 128 - 1, 0);  // the compiler sees that a warp has one
  const float scale_log2 = p.scale * kLog2E;
  const int window = static_cast<int>(p.window);
  const uint32_t odd = static_cast<uint32_t>(work.q_begin % 2 * 8);  // pairs are copied from an even one on
  int left = work.turns, first = work.tile * kQueries, h = 0;
  barrier_wait(shared.keys_full(), at.keys++ % 2);
  if (work.count < P::kKeys) {  // d_q sums over all rows
    clear_rows<Crew>(shared.k(), work.count);
    clear_rows<Crew>(shared.v(), work.count);
    cleared<Crew>();
  }
  do {
    const int stage = at.turn % 2, count = work.lq - first, ahead = work.ahead + first;
    const typename P::Queries q = shared.q(stage), d_o = shared.d_o(stage);
    Sums<kQueries> s, d_p;  // fresh in every turn, and products write s and d_p alone, because some are always under way
    Rounded<kQueries> weights, d_s;
    barrier_wait(shared.full(stage), parity_of(at.turn));
    if (count < kQueries) {
      consumers_meet<Crew>();  // earlier turns have read the pairs: racecheck does not follow the barriers of copies that far
      clear_rows<Crew>(q, count);
      clear_rows<Crew>(d_o, count);
      clear_pairs<kQueries>(shared.stats(stage) + odd, count);
      cleared<Crew>();
    }
    device::wgmma_fence();
    begin_scores(s, shared.k(), group * 64, q);
    device::wgmma_commit();
    device::wgmma_wait<1>();  // d_k of the turn before
    if (left < work.turns) release(shared.read(stage ^ 1));
    device::wgmma_fence();
    begin_scores(d_p, shared.v(), group * 64, d_o);
    device::wgmma_commit();
    const uint32_t stats = shared.stats(stage) + odd + lane % 4 * 16;
    device::wgmma_wait<1>();
    device::settle(s);
    const bool masked = count < kQueries || needs_mask(ahead, kQueries, P::kKeys, window);
    const Operand d_o_columns = columns_of(d_o, 0);
    constexpr int kHalf = kQueries / 2;
#pragma unroll
    for (int i = 0; i < 2; ++i) {  // the first half's product with d_o runs under the exp2 of the second
      auto& half = *reinterpret_cast<Sums<kHalf>*>(&s[i * kHalf / 8]);
      auto& left_half = *reinterpret_cast<Rounded<kHalf>*>(&weights[i * kHalf / 16]);
      to_probabilities<kHalf>(half, stats + i * kHalf * 8, scale_log2);
      if (masked) mask_queries<kHalf>(half, warp_row() - ahead - i * kHalf, window, count - i * kHalf, 0);
      round_all<kHalf>(left_half, half);
      device::wgmma_fence();
      begin_add<kHalf, D>(d_v, left_half, {d_o_columns.low + i * kHalf * 8});
    }
    device::wgmma_commit();
    device::wgmma_wait<1>();
    device::settle(d_p);
    if (left == 1) release(shared.v_read());  // the next item's come under the end of this one
    to_d_scores<kQueries>(s, d_p, stats);
    round_all<kQueries>(d_s, s);
    barrier_wait(shared.d_s_read(), at.turn % 2 ^ 1);
    store_scores<kQueries>(shared.d_s(), d_s);
    device::fence_async_proxy();
    release(shared.d_s_full());
    barrier_wait(shared.d_s_full(), at.turn % 2);
    Sums<64> d_q;
    device::wgmma_fence();
    const Operand d_s_columns = columns_of(shared.d_s(), D == 64 ? 64 * group : 0), k_columns = columns_of(shared.k(), D == 64 ? 0 : 64 * group);
#pragma unroll
    for (int step = 0; step < P::kKeys / 16; ++step) device::wgmma<true, true>(d_q, d_s_columns.at(step * 2048), k_columns.at(step * 2048), step > 0);
    device::wgmma_commit();
    begin_add<kQueries, D>(d_k, d_s, columns_of(q, 0));
    device::wgmma_commit();
    device::wgmma_wait<1>();  // d_v and d_q
    device::settle(d_q);
    release(shared.d_s_read());
    if (left == 1) release(shared.k_read());
    barrier_wait(shared.area_read(stage), parity_of(at.turn) ^ 1);
    store_part(shared.part(stage, group), d_q, work.q_begin);
    device::fence_async_proxy();
    release(shared.area_full(stage));
    ++at.turn;
    if (++h == work.group) h = 0, first -= kQueries;
  } while (--left > 0);
  device::wgmma_wait<0>();
  device::settle(d_k);
  device::settle(d_v);
  release(shared.read(at.turn % 2 ^ 1));
}

/// A warpgroup: 64 of the keys.
template <class P>
__device__ void consume(const Problem& p, uint32_t item, const Shared<P>& shared, Position& at) {
  constexpr int D = P::kDim;
  Sums<D> d_k, d_v;
  clear<D>(d_k);
  clear<D>(d_v);
  Work work = load_work(item);
  if (work.turns > 0) add_turns<P>(p, work, shared, at, d_k, d_v);
  work = load_work(item);  // in no registers until here
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = warp_row() + threadIdx.x % 32 / 4 + 8 * i;
    if (row >= work.count) continue;
    const int64_t offset = ((int64_t{work.token} + row) * p.HK + work.hk) * D;
    if (p.d_k) store_row<D>(static_cast<bf16*>(p.d_k) + offset, d_k, i, p.scale);
    if (p.d_v) store_row<D>(static_cast<bf16*>(p.d_v) + offset, d_v, i, 1);
  }
}

template <class P>
__global__ void __launch_bounds__(P::Crew::kThreads, 1) backward_kernel(const __grid_constant__ JointParams params) {
  if (device::kHopperCode) {
    extern __shared__ uint8_t memory[];
    const Shared<P> shared{(device::shared_address(memory) + 1023) / 1024 * 1024};
    if (threadIdx.x == 0) shared.init_barriers();
    __syncthreads();
    Position at;
    const int warp = static_cast<int>(threadIdx.x) / 32;
    if (warp >= 4) {
      device::take_registers<P::Crew::kRegisters>();
      take_items<P>(shared, [&](uint32_t item) { consume<P>(params.base.problem, item, shared, at); });
    } else {
      device::give_registers_up<P::Crew::kCopierRegisters>();
      if (threadIdx.x == 0) give_items<P>(params.base, shared);
      if (warp == 1 || warp == 2)
        take_items<P>(shared, [&](uint32_t item) {
          if (threadIdx.x % 32 == 0) add_parts<P>(params, load_work(item), shared, warp - 1, at);
        });
    }
  }
}

constexpr int kRoundThreads = 256;

struct RoundParams {
  Problem problem;
  const float* sums;  // JointParams::d_q
};

/// d_q from its sums: a thread 8 columns.
template <int D>
__global__ void __launch_bounds__(kRoundThreads) round_kernel(const __grid_constant__ RoundParams params) {
  const Problem& p = params.problem;
  const int64_t index = int64_t{blockIdx.x} * kRoundThreads + threadIdx.x, row = index / (D / 8), n = row / p.H, h = row % p.H;
  if (n >= p.Nq) return;
  const int piece = static_cast<int>(index % (D / 8));
  float x[8];
  device::load(params.sums + ((h * (D / 64) + piece / 8) * p.Nq + n) * 64 + (piece % 8 ^ n % 8) * 8, x);
#pragma unroll
  for (float& value : x) value *= p.scale;
  device::store(static_cast<bf16*>(p.d_q) + row * D + piece * 8, x);
}

template <int D>
void launch_joint(Context& ctx, const Problem& problem) {
  using P = Plan<D>;
  JointParams params = {.base = params_for(problem)};
  params.base.items = num_tiles(problem.Nk, problem.S, P::kKeys) * problem.HK;
  if (params.base.items == 0) return;
  params.query_tiles = num_tiles(problem.Nq, problem.S, P::kQueries);
  const Tensor counts = Tensor::zeros(ctx, {1 + problem.H * params.query_tiles}, DType::i32);
  params.base.taken = reinterpret_cast<unsigned*>(counts.raw()), params.added = params.base.taken + 1;
  Tensor sums;
  if (problem.d_q) sums = Tensor::empty(ctx, {problem.H, D / 64, problem.Nq, 64}, DType::f32), params.d_q = sums.data<float>();
  const int64_t at_once = cuda::facts(ctx.device().index).num_multiprocessors;
  const cuda::LaunchConfig config = {
      .grid = static_cast<unsigned>(std::min(params.base.items, at_once)), .block = P::Crew::kThreads, .shared_bytes = P::kSharedBytes};
  cuda::launch(ctx.stream(), "attention_hopper_backward", &backward_kernel<P>, config, params);
  if (!problem.d_q) return;
  const int64_t pieces = problem.Nq * problem.H * (D / 8);
  const cuda::LaunchConfig rounding = {.grid = static_cast<unsigned>((pieces + kRoundThreads - 1) / kRoundThreads), .block = kRoundThreads};
  cuda::launch(ctx.stream(), "attention_hopper_backward_round", &round_kernel<D>, rounding, RoundParams{problem, params.d_q});
}

}  // namespace

void hopper_backward(Context& ctx, const Problem& problem) {
  if (problem.D == 64) return launch_joint<64>(ctx, problem);
  if (problem.D == 128) return launch_joint<128>(ctx, problem);
  if (problem.d_q) hopper_backward_q(ctx, problem);
  if (problem.d_k || problem.d_v) hopper_backward_kv(ctx, problem);
}

}  // namespace braid::attention
