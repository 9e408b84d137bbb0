#include "cuda/kernels/attention/fast.h"
#include "cuda/kernels/attention/hopper.h"
#include "cuda/kernels/attention/hopper_host.h"
#include "cuda/kernels/attention/hopper_queries.h"

namespace braid::attention {
namespace {

using namespace hopper;
using device::barrier_wait;

template <int dim>
struct Plan {
  static constexpr int kDim = dim;
  // Heads of 64 wait for exp2 as much as for products: three warpgroups overlap them better.
  using Crew = hopper::Crew<dim == 64 ? 3 : 2>;
  static constexpr int kQueries = Crew::kRows, kKeys = dim > 128 ? 64 : 128;
  static constexpr int kStages = 2;
  using Queries = WgmmaTile<kQueries, dim>;
  using Keys = WgmmaTile<kKeys, dim>;
  static constexpr int kTileBytes = Queries::kBytes + 2 * kStages * Keys::kBytes;
  static constexpr int kSharedBytes = kTileBytes + ItemQueue::kBytes + (2 + 4 * kStages) * 8 + 1024;  // and room to align
};

/// Shared memory and barriers of a block, by name.
template <class P>
struct Shared {
  uint32_t base;
  __device__ typename P::Queries q() const { return {base}; }
  __device__ typename P::Keys keys(int stage) const { return {base + P::Queries::kBytes + 2 * stage * P::Keys::kBytes}; }
  __device__ typename P::Keys values(int stage) const { return {base + P::Queries::kBytes + (2 * stage + 1) * P::Keys::kBytes}; }
  __device__ ItemQueue items() const { return {base + P::kTileBytes}; }
  __device__ uint32_t barrier(int i) const { return base + P::kTileBytes + ItemQueue::kBytes + 8 * i; }
  __device__ uint32_t q_full() const { return barrier(0); }
  __device__ uint32_t q_read() const { return barrier(1); }
  __device__ uint32_t keys_full(int stage) const { return barrier(2 + 4 * stage); }
  __device__ uint32_t values_full(int stage) const { return barrier(3 + 4 * stage); }
  __device__ uint32_t keys_read(int stage) const { return barrier(4 + 4 * stage); }
  __device__ uint32_t values_read(int stage) const { return barrier(5 + 4 * stage); }

  __device__ void init_barriers() const {
    items().init_barriers(P::Crew::kWarps);
    device::barrier_init(q_full(), 1);
    device::barrier_init(q_read(), P::Crew::kWarps);
    for (int stage = 0; stage < P::kStages; ++stage) {
      device::barrier_init(keys_full(stage), 1);
      device::barrier_init(values_full(stage), 1);
      device::barrier_init(keys_read(stage), P::Crew::kWarps);
      device::barrier_init(values_read(stage), P::Crew::kWarps);
    }
    device::barrier_init_done();
  }
};

/// Where a thread stands in the rings, from item to item.
template <class P>
struct Position {
  Ring<1> q;
  Ring<P::kStages> keys, values;
};

/// One thread: queries, then keys and values tile by tile into the ring.
template <class P>
__device__ void produce(const Params& params, const Work& work, const Shared<P>& shared, Position<P>& at) {
  barrier_wait(shared.q_read(), at.q.parity ^ 1);
  device::barrier_expect(shared.q_full(), P::Queries::kBytes);
  copy_tile(shared.q(), params.q, shared.q_full(), work.h, work.token);
  at.q.advance();
#pragma unroll 1  // in few registers
  for (int t = work.num_tiles - 1; t >= 0; --t, at.keys.advance()) {
    const int stage = at.keys.stage;
    const int64_t token = work.tile.k_begin + work.keys.begin + int64_t{t} * P::kKeys;
    barrier_wait(shared.keys_read(stage), at.keys.parity ^ 1);
    device::barrier_expect(shared.keys_full(stage), P::Keys::kBytes);
    copy_tile(shared.keys(stage), params.k, shared.keys_full(stage), work.hk, token);
    barrier_wait(shared.values_read(stage), at.keys.parity ^ 1);
    device::barrier_expect(shared.values_full(stage), P::Keys::kBytes);
    copy_tile(shared.values(stage), params.v, shared.values_full(stage), work.hk, token);
  }
}

/// This thread's part of the output.
template <int D>
__device__ void store(const Problem& p, const Work& work, const Sums<D>& o, const RunningSoftmax& softmax) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = warp_row() + threadIdx.x % 32 / 4 + 8 * i;
    const float l = quad_sum(softmax.l[i]);
    if (row >= work.count) continue;
    store_row<D>(static_cast<bf16*>(p.o) + ((work.token + row) * p.H + work.h) * D, o, i, 1 / l);
    if (threadIdx.x % 4 == 0) p.lse[(work.token + row) * p.H + work.h] = softmax.m[i] * p.scale + logf(l);
  }
}

/// A warpgroup: 64 of the queries. The scores of a tile are multiplied while the values of the tile before are.
template <class P>
__device__ void consume(const Problem& p, const Work& work, const Shared<P>& shared, Position<P>& at) {
  constexpr int D = P::kDim, kKeys = P::kKeys;
  const int window = static_cast<int>(p.window);
  int ahead = work.ahead;
  const float scale_log2 = p.scale * kLog2E;
  Sums<D> o;
  Sums<kKeys> s;
  Rounded<kKeys> weights;
  RunningSoftmax softmax;
  clear<D>(o);
  barrier_wait(shared.q_full(), at.q.parity);
  at.q.advance();
  if (work.live < kKeys) {
    barrier_wait(shared.values_full(at.values.stage), at.values.parity);
    clear_rows<typename P::Crew>(shared.values(at.values.stage), work.live);
    cleared<typename P::Crew>();
  }
  for (int t = work.num_tiles - 1; t >= 0; --t, at.keys.advance()) {
    const bool first = t == work.num_tiles - 1;
    barrier_wait(shared.keys_full(at.keys.stage), at.keys.parity);
    device::wgmma_fence();
    begin_multiply_rows(s, shared.q(), warp_row() / 64 * 64, shared.keys(at.keys.stage));
    device::wgmma_commit();
    if (!first) {
      barrier_wait(shared.values_full(at.values.stage), at.values.parity);
      device::wgmma_fence();
      begin_add_product<kKeys, D>(o, weights, shared.values(at.values.stage));
      device::wgmma_commit();
      device::wgmma_wait<1>();
    } else {
      device::wgmma_wait<0>();
    }
    device::settle(s);
    release(shared.keys_read(at.keys.stage));
    if (t == 0) release(shared.q_read());
    if (needs_mask(ahead, P::kQueries, kKeys, window)) mask_keys<kKeys>(s, ahead + warp_row(), window, -INFINITY);
    ahead += kKeys;
    float shrink[2];
    softmax.update<kKeys>(s, scale_log2, shrink);
    device::wgmma_wait<0>();
    device::settle(o);
    if (!first) {
      release(shared.values_read(at.values.stage));
      at.values.advance();
    }
#pragma unroll
    for (int j = 0; j < D / 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) o[j][i] *= shrink[i / 2];
    round_all<kKeys>(weights, s);
  }
  barrier_wait(shared.values_full(at.values.stage), at.values.parity);
  device::wgmma_fence();
  begin_add_product<kKeys, D>(o, weights, shared.values(at.values.stage));
  device::wgmma_commit();
  device::wgmma_wait<0>();
  device::settle(o);
  release(shared.values_read(at.values.stage));
  at.values.advance();
  store<D>(p, work, o, softmax);
}

template <class P>
__global__ void __launch_bounds__(P::Crew::kThreads, 1) forward_kernel(const __grid_constant__ Params params) {
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

template <int D>
void launch_forward(Context& ctx, const Problem& problem) {
  using P = Plan<D>;
  const int64_t items = num_tiles(problem.Nq, problem.S, P::kQueries) * problem.H;
  launch_items<P>(ctx, "attention_hopper_forward", &forward_kernel<P>, problem, items);
}

}  // namespace

void hopper_forward(Context& ctx, const Problem& problem) {
  if (problem.D == 64) launch_forward<64>(ctx, problem);
  else if (problem.D == 128) launch_forward<128>(ctx, problem);
  else launch_forward<256>(ctx, problem);
}

bool built_for_hopper() { return is_built(&forward_kernel<Plan<64>>); }

}  // namespace braid::attention
