// What the walks need of q, k and decays that a head's channels share, of each chunk (Prepared, cut.h), one block a chunk and head.
#include "cuda/kernels/gated_linear_attention/place.h"
#include "cuda/runtime/check.h"

namespace braid::gla_cuda {
namespace {

struct PrepareHeadShared {
  char q[8192], k[8192];
  float sums[64], totals[64];
};

// Decays that a head's channels share: one product of all pairs, decayed afterwards.
__global__ void __launch_bounds__(kPlaceThreads, 4) prepare_head(PrepareParams params) {
  __shared__ __align__(128) PrepareHeadShared shared;
  const Problem& p = params.problem;
  const Block block = block_of(p.H);
  const Piece chunk = piece_of<kChunk>(params.chunks, block.slot);
  if (chunk.count == 0) return;
  const int64_t h = block.h, stride = p.H * p.K, slot = chunk.slot * p.H + h;
  const int count = static_cast<int>(chunk.count);
  const Place place;
  float pairs[4][4] = {};
  for (int64_t column = 0; column < p.K; column += kColumns) {
    const int64_t at = chunk.first * stride + h * p.K + column;
    load_tile<64, kPlaceThreads>(device::shared_address(shared.q), static_cast<const device::bf16*>(p.q) + at, stride, count);
    load_tile<64, kPlaceThreads>(device::shared_address(shared.k), static_cast<const device::bf16*>(p.k) + at, stride, count);
    device::cp_async_commit();
    if (column == 0) sum_head_decays(p, chunk, h, shared.sums, shared.totals);
    device::cp_async_wait<0>();
    __syncthreads();
    add_row_products(shared.q, shared.k, place, pairs);
    __syncthreads();
    each([&](int i, int j) {
      const float sum = shared.sums[place.row(i)], from_start = p.scale * exp2_of(sum), to_end = exp2_of(shared.sums[63] - sum);
      uint32_t &q = word_at(shared.q, place, i, j), &k = word_at(shared.k, place, i, j);
      q = scaled_word(q, {from_start, from_start}), k = scaled_word(k, {to_end, to_end});
    });
    __syncthreads();
    store_tile<64, kPlaceThreads>(shared.q, params.q + at, stride, count);
    store_tile<64, kPlaceThreads>(shared.k, params.k + at, stride, count);
    if (threadIdx.x < kColumns) params.decay[slot * p.K + column + threadIdx.x] = exp2_of(shared.sums[63]);
    __syncthreads();
  }
  each([&](int i, int j) {
    const int t = place.row(i), s = place.column(j);
    const float left = s <= t ? p.scale * exp2_of(shared.sums[t] - shared.sums[s]) * pairs[j][2 * i] : 0.0f;
    const float right = s < t ? p.scale * exp2_of(shared.sums[t] - shared.sums[s + 1]) * pairs[j][2 * i + 1] : 0.0f;
    put_pair(shared.q, t, s, left, right, params.transposed);
  });
  __syncthreads();
  store_tile<64, kPlaceThreads>(shared.q, params.pairs + slot * 4096, 64, 64);
}

}  // namespace

void launch_prepare_head(Context& ctx, const PrepareParams& params) {
  const cuda::LaunchConfig config{.grid = grid_of(params.chunks.slots, params.problem.H), .block = kPlaceThreads};
  cuda::launch(ctx.stream(), "gated_linear_attention_prepare", &prepare_head, config, params);
}

}  // namespace braid::gla_cuda
