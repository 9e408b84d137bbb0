#include "cuda/kernels/attention/fast.h"
#include "cuda/kernels/attention/hopper.h"
#include "cuda/kernels/attention/hopper_host.h"

namespace braid::attention {
namespace {

using namespace hopper;
using device::barrier_wait;

constexpr int kQueries = 128;

template <int dim>
struct Plan {
  static constexpr int kDim = dim;
  static constexpr int kKeys = dim > 128 ? 64 : 128;
  static constexpr int kStages = 2;
  using Queries = WgmmaTile<kQueries, dim>;
  using Keys = WgmmaTile<kKeys, dim>;
  static constexpr int kBarriers = 1 + 4 * kStages;
  static constexpr int kTileBytes = Queries::kBytes + 2 * kStages * Keys::kBytes;
  static constexpr int kSharedBytes = kTileBytes + kBarriers * 8 + 1024;  // and room to align
};

/// Shared memory and barriers of a block, by name.
template <class P>
struct Shared {
  uint32_t base;
  __device__ typename P::Queries q() const { return {base}; }
  __device__ typename P::Keys keys(int stage) const { return {base + P::Queries::kBytes + 2 * stage * P::Keys::kBytes}; }
  __device__ typename P::Keys values(int stage) const { return {base + P::Queries::kBytes + (2 * stage + 1) * P::Keys::kBytes}; }
  __device__ uint32_t barrier(int i) const { return base + P::kTileBytes + 8 * i; }
  __device__ uint32_t q_full() const { return barrier(0); }
  __device__ uint32_t keys_full(int stage) const { return barrier(1 + 4 * stage); }
  __device__ uint32_t values_full(int stage) const { return barrier(2 + 4 * stage); }
  __device__ uint32_t keys_read(int stage) const { return barrier(3 + 4 * stage); }
  __device__ uint32_t values_read(int stage) const { return barrier(4 + 4 * stage); }

  __device__ void init_barriers() const {
    device::barrier_init(q_full(), 1);
    for (int stage = 0; stage < P::kStages; ++stage) {
      device::barrier_init(keys_full(stage), 1);
      device::barrier_init(values_full(stage), 1);
      device::barrier_init(keys_read(stage), kConsumers / 32);
      device::barrier_init(values_read(stage), kConsumers / 32);
    }
    device::barrier_init_done();
  }
};

/// What a block works on: 128 queries of one head and the keys they see, in tiles; the last tile comes first.
struct Work {
  Tile tile;
  Range keys;
  int64_t h, hk, token, count;
  int num_tiles;
};

template <class P>
__device__ Work find_work(const Problem& p) {
  const int64_t tiles = gridDim.x / p.H;
  Work work;
  work.h = blockIdx.x % p.H, work.hk = work.h / (p.H / p.HK);
  work.tile = find_tile(p, p.cu_q, kQueries, tiles - 1 - blockIdx.x / p.H);  // those with the most keys first
  work.count = min(int64_t{kQueries}, work.tile.lq - work.tile.first);
  work.token = work.tile.q_begin + work.tile.first;
  work.keys = keys_of(p, work.tile, work.tile.first, work.count);
  work.num_tiles = static_cast<int>((work.keys.end - work.keys.begin + P::kKeys - 1) / P::kKeys);
  return work;
}

/// One thread: queries, then keys and values tile by tile into the ring.
template <class P>
__device__ void produce(const Params& params, const Work& work, const Shared<P>& shared) {
  device::barrier_expect(shared.q_full(), P::Queries::kBytes);
  copy_tile(shared.q(), params.q, shared.q_full(), work.h, work.token);
  Ring<P::kStages> ring;
  for (int t = work.num_tiles - 1; t >= 0; --t, ring.advance()) {
    const int64_t token = work.tile.k_begin + work.keys.begin + int64_t{t} * P::kKeys;
    barrier_wait(shared.keys_read(ring.stage), ring.parity ^ 1);
    device::barrier_expect(shared.keys_full(ring.stage), P::Keys::kBytes);
    copy_tile(shared.keys(ring.stage), params.k, shared.keys_full(ring.stage), work.hk, token);
    barrier_wait(shared.values_read(ring.stage), ring.parity ^ 1);
    device::barrier_expect(shared.values_full(ring.stage), P::Keys::kBytes);
    copy_tile(shared.values(ring.stage), params.v, shared.values_full(ring.stage), work.hk, token);
  }
}

/// A warpgroup: 64 of the queries. The scores of a tile are multiplied while the values of the tile before are.
template <class P>
__device__ void consume(const Problem& p, const Work& work, const Shared<P>& shared) {
  constexpr int D = P::kDim, kKeys = P::kKeys;
  const int group = threadIdx.x / 128 - 1, warp_row = 64 * group + threadIdx.x % 128 / 32 * 16;
  const int64_t first_position = work.tile.position(work.tile.first);
  const float scale_log2 = p.scale * kLog2E;
  Sums<D> o;
  Sums<kKeys> s;
  Rounded<kKeys> weights;
  RunningSoftmax softmax;
  clear<D>(o);
  Ring<P::kStages> keys, values;  // values: one tile behind
  barrier_wait(shared.q_full(), 0);
  for (int t = work.num_tiles - 1; t >= 0; --t, keys.advance()) {
    const bool first = t == work.num_tiles - 1;
    barrier_wait(shared.keys_full(keys.stage), keys.parity);
    device::wgmma_fence();
    begin_multiply_rows(s, shared.q(), 64 * group, shared.keys(keys.stage));
    device::wgmma_commit();
    if (!first) {
      barrier_wait(shared.values_full(values.stage), values.parity);
      device::wgmma_fence();
      begin_add_product<kKeys, D>(o, weights, shared.values(values.stage));
      device::wgmma_commit();
      device::wgmma_wait<1>();
    } else {
      device::wgmma_wait<0>();
    }
    device::settle(s);
    release(shared.keys_read(keys.stage));
    const int64_t key = work.keys.begin + int64_t{t} * kKeys;
    if (!all_visible(p, first_position, first_position + kQueries - 1, key, kKeys))
      mask_keys<kKeys>(s, static_cast<int>(first_position - key) + warp_row, static_cast<int>(p.window), -INFINITY);
    float shrink[2];
    softmax.update<kKeys>(s, scale_log2, shrink);
    device::wgmma_wait<0>();
    device::settle(o);
    if (!first) {
      release(shared.values_read(values.stage));
      values.advance();
    }
#pragma unroll
    for (int j = 0; j < D / 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) o[j][i] *= shrink[i / 2];
    round_all<kKeys>(weights, s);
  }
  barrier_wait(shared.values_full(values.stage), values.parity);
  device::wgmma_fence();
  begin_add_product<kKeys, D>(o, weights, shared.values(values.stage));
  device::wgmma_commit();
  device::wgmma_wait<0>();
  device::settle(o);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = warp_row + threadIdx.x % 32 / 4 + 8 * i;
    const float l = quad_sum(softmax.l[i]);
    if (row >= work.count) continue;
    store_row<D>(static_cast<bf16*>(p.o) + ((work.token + row) * p.H + work.h) * D, o, i, 1 / l);
    if (threadIdx.x % 4 == 0) p.lse[(work.token + row) * p.H + work.h] = softmax.m[i] * p.scale + logf(l);
  }
}

template <class P>
__global__ void __launch_bounds__(kThreads, 1) forward_kernel(const __grid_constant__ Params params) {
  if (device::kHopperCode) {
    extern __shared__ uint8_t memory[];
    const Shared<P> shared{(device::shared_address(memory) + 1023) / 1024 * 1024};
    const Work work = find_work<P>(params.problem);
    if (work.tile.first >= work.tile.lq) return;
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
void launch_forward(Context& ctx, const Problem& problem) {
  using P = Plan<D>;
  const int64_t blocks = num_tiles(problem.Nq, problem.S, kQueries) * problem.H;
  const cuda::LaunchConfig config = {.grid = static_cast<unsigned>(blocks), .block = kThreads, .shared_bytes = P::kSharedBytes};
  cuda::launch(ctx.stream(), "attention_hopper_forward", &forward_kernel<P>, config, params_for(problem));
}

}  // namespace

void hopper_forward(Context& ctx, const Problem& problem) {
  if (problem.D == 64) launch_forward<64>(ctx, problem);
  else if (problem.D == 128) launch_forward<128>(ctx, problem);
  else launch_forward<256>(ctx, problem);
}

bool built_for_hopper() { return is_built(&forward_kernel<Plan<64>>); }

}  // namespace braid::attention
