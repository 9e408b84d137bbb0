#include "cuda/kernels/attention/fast.h"
#include "cuda/kernels/attention/hopper.h"
#include "cuda/kernels/attention/hopper_backward.h"
#include "cuda/kernels/attention/hopper_host.h"
#include "cuda/kernels/attention/hopper_queries.h"

namespace braid::attention {
namespace {

using namespace hopper;
using device::barrier_wait;

struct Plan {
  static constexpr int kDim = 256;
  using Crew = hopper::Crew<2>;
  static constexpr int kQueries = Crew::kRows, kKeys = 32, kStages = 2;
  using Queries = WgmmaTile<kQueries, kDim>;
  using Keys = WgmmaTile<kKeys, kDim>;
  static constexpr int kTileBytes = 2 * Queries::kBytes + 2 * kStages * Keys::kBytes;
  static constexpr int kSharedBytes = kTileBytes + ItemQueue::kBytes + (2 + 2 * kStages) * 8 + 1024;  // and room to align
};

template <class P>
struct Shared {
  uint32_t base;
  __device__ typename P::Queries q() const { return {base}; }
  __device__ typename P::Queries d_o() const { return {base + P::Queries::kBytes}; }
  __device__ typename P::Keys keys(int stage) const { return {base + 2 * P::Queries::kBytes + 2 * stage * P::Keys::kBytes}; }
  __device__ typename P::Keys values(int stage) const { return {base + 2 * P::Queries::kBytes + (2 * stage + 1) * P::Keys::kBytes}; }
  __device__ ItemQueue items() const { return {base + P::kTileBytes}; }
  __device__ uint32_t queries_full() const { return base + P::kTileBytes + ItemQueue::kBytes; }
  __device__ uint32_t queries_read() const { return queries_full() + 8; }
  __device__ uint32_t full(int stage) const { return queries_full() + 16 + 16 * stage; }
  __device__ uint32_t read(int stage) const { return full(stage) + 8; }

  __device__ void init_barriers() const {
    items().init_barriers(P::Crew::kWarps);
    device::barrier_init(queries_full(), 1);
    device::barrier_init(queries_read(), P::Crew::kWarps);
    for (int stage = 0; stage < P::kStages; ++stage) {
      device::barrier_init(full(stage), 1);
      device::barrier_init(read(stage), P::Crew::kWarps);
    }
    device::barrier_init_done();
  }
};

/// Where a thread stands in the rings, from item to item.
template <class P>
struct Position {
  Ring<1> queries;
  Ring<P::kStages> keys;
};

template <class P>
__device__ void produce(const Params& params, const Work& work, const Shared<P>& shared, Position<P>& at) {
  barrier_wait(shared.queries_read(), at.queries.parity ^ 1);
  device::barrier_expect(shared.queries_full(), 2 * P::Queries::kBytes);
  copy_tile(shared.q(), params.q, shared.queries_full(), work.h, work.token);
  copy_tile(shared.d_o(), params.d_o, shared.queries_full(), work.h, work.token);
  at.queries.advance();
#pragma unroll 1  // in few registers
  for (int t = work.num_tiles - 1; t >= 0; --t, at.keys.advance()) {
    const int stage = at.keys.stage;
    const int64_t token = work.tile.k_begin + work.keys.begin + int64_t{t} * P::kKeys;
    barrier_wait(shared.read(stage), at.keys.parity ^ 1);
    device::barrier_expect(shared.full(stage), 2 * P::Keys::kBytes);
    copy_tile(shared.keys(stage), params.k, shared.full(stage), work.hk, token);
    copy_tile(shared.values(stage), params.v, shared.full(stage), work.hk, token);
  }
}

/// A warpgroup: 64 of the queries; the product with d_s runs on under the scores of the next tile.
template <class P>
__device__ void consume(const Problem& p, const Work& work, const Shared<P>& shared, Position<P>& at) {
  constexpr int D = P::kDim, kKeys = P::kKeys;
  const int window = static_cast<int>(p.window);
  int ahead = work.ahead;
  const float scale_log2 = p.scale * kLog2E;
  float2 stats[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = warp_row() + threadIdx.x % 32 / 4 + 8 * i;
    stats[i] = row < work.count ? *stats_of(p, work.h, work.token + row) : float2{0, 0};
  }
  if (work.live < kKeys) {
    barrier_wait(shared.full(at.keys.stage), at.keys.parity);
    clear_rows<typename P::Crew>(shared.keys(at.keys.stage), work.live);
    cleared<typename P::Crew>();
  }
  barrier_wait(shared.queries_full(), at.queries.parity);
  at.queries.advance();
  Sums<D> d_q;
  clear<D>(d_q);
  int last_stage = -1;
  int t = work.num_tiles - 1;
  do {
    Sums<kKeys> s, d_p;  // fresh in every turn: values carried over would be moved between products that are under way
    Rounded<kKeys> d_s;
    const int stage = at.keys.stage;
    barrier_wait(shared.full(stage), at.keys.parity);
    device::wgmma_fence();
    begin_multiply_rows(s, shared.q(), warp_row() / 64 * 64, shared.keys(stage));
    begin_multiply_rows(d_p, shared.d_o(), warp_row() / 64 * 64, shared.values(stage));
    device::wgmma_commit();
    device::wgmma_wait<1>();
    if (last_stage >= 0) release(shared.read(last_stage));
    last_stage = stage;
    device::wgmma_wait<0>();
    device::settle(s);
    device::settle(d_p);
    Sums<kKeys> x;  // not in place: the registers of a product may only be written by products while one is under way
#pragma unroll
    for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) x[j][i] = exp2_approx(s[j][i] * scale_log2 - stats[i / 2].x) * (d_p[j][i] - stats[i / 2].y);
    if (needs_mask(ahead, P::kQueries, kKeys, window)) mask_keys<kKeys>(x, ahead + warp_row(), window, 0);
    ahead += kKeys;
    round_all<kKeys>(d_s, x);
    device::wgmma_fence();
    begin_add_product<kKeys, D>(d_q, d_s, shared.keys(stage));
    device::wgmma_commit();
    at.keys.advance();
  } while (--t >= 0);
  device::wgmma_wait<0>();
  device::settle(d_q);
  release(shared.read(last_stage));
  release(shared.queries_read());
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = warp_row() + threadIdx.x % 32 / 4 + 8 * i;
    if (row < work.count) store_row<D>(static_cast<bf16*>(p.d_q) + ((work.token + row) * p.H + work.h) * D, d_q, i, p.scale);
  }
}

template <class P>
__global__ void __launch_bounds__(P::Crew::kThreads, 1) backward_q_kernel(const __grid_constant__ Params params) {
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
        if (work.num_tiles > 0) produce<P>(params, work, shared, at);
      });
    } else {
      device::take_registers<P::Crew::kRegisters>();
      shared.items().take(params, [&](int64_t item) {
        const Work work = find_work<P>(params, item);
        if (work.num_tiles > 0) consume<P>(params.problem, work, shared, at);
      });
    }
  }
}

}  // namespace

void hopper_backward_q(Context& ctx, const Problem& problem) {
  const int64_t items = num_tiles(problem.Nq, problem.S, Plan::kQueries) * problem.H;
  launch_items<Plan>(ctx, "attention_hopper_backward_q", &backward_q_kernel<Plan>, problem, items);
}

}  // namespace braid::attention
