// What the walks need of q, k and decays that a head's channels share, of each chunk (Prepared, cut.h), one block a chunk and head.
#include "cuda/kernels/gated_linear_attention/place.h"
#include "cuda/runtime/check.h"

namespace braid::gla_cuda {
namespace {

struct PrepareHeadShared {
  char tiles[4][8192];  // q and k by turns; then the pairs
  float sums[64], totals[64];
};

/// A token's factor, and, of it and its neighbour's, the words of their roundings and of the rest: threads 0 … 63.
__device__ inline void put_factor(float* to, float factor) {
  const int t = threadIdx.x;
  to[t] = factor;
  const float other = __shfl_down_sync(0xffffffffu, factor, 1);
  const uint32_t rounded = device::pack_bf16(factor, other);
  const uint32_t rest = device::pack_bf16(factor - device::low_bf16(rounded), other - device::high_bf16(rounded));
  if (t % 2 == 0) *reinterpret_cast<uint2*>(to + 128 + t) = {rounded, rest};
}

// Decays that a head's channels share: one product of all pairs, decayed afterwards.
__global__ void __launch_bounds__(device::kTileThreads, 4) prepare_head(PrepareParams params) {
  __shared__ __align__(128) PrepareHeadShared shared;
  const Problem& p = params.problem;
  const Block block = block_of(p.H);
  const Piece chunk = piece_of<kChunk>(params.chunks, block.slot);
  if (chunk.count == 0) return;
  const int64_t h = block.h, stride = p.H * p.K, slot = chunk.slot * p.H + h, at = chunk.first * stride + h * p.K;
  const int count = static_cast<int>(chunk.count);
  const TilePlace place;
  sum_head_decays(p, chunk, h, shared.sums, shared.totals);
  float pairs[4][4] = {};
  add_products(static_cast<const device::bf16*>(p.q) + at, static_cast<const device::bf16*>(p.k) + at, stride, p.K, count, shared.tiles, place,
               pairs);
  const float all = shared.sums[63];
  for (int64_t key = threadIdx.x; key < p.K; key += device::kTileThreads) params.decay[slot * p.K + key] = device::fast_exp2(all);
  if (threadIdx.x < 64) {
    const float sum = shared.sums[threadIdx.x];
    put_factor(params.factors + slot * 256, p.scale * device::fast_exp2(sum));
    put_factor(params.factors + slot * 256 + 64, device::fast_exp2(all - sum));
  }
  TilePlace::each([&](int i, int j) {
    const int t = place.row(i), s = place.column(j);
    const float left = s <= t ? p.scale * device::fast_exp2(shared.sums[t] - shared.sums[s]) * pairs[j][2 * i] : 0.0f;
    const float right = s < t ? p.scale * device::fast_exp2(shared.sums[t] - shared.sums[s + 1]) * pairs[j][2 * i + 1] : 0.0f;
    put_pair(shared.tiles[0], t, s, left, right);
  });
  __syncthreads();
  store_tile<64, device::kTileThreads>(shared.tiles[0], params.pairs + slot * 4096, 64, 64);
}

}  // namespace

void launch_prepare_head(Context& ctx, const PrepareParams& params) {
  const cuda::LaunchConfig config{.grid = grid_of(params.chunks.slots, params.problem.H), .block = device::kTileThreads};
  cuda::launch(ctx.stream(), "gated_linear_attention_prepare", &prepare_head, config, params);
}

}  // namespace braid::gla_cuda
