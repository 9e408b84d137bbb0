#include "cuda/kernels/attention/plain.h"
#include "cuda/kernels/attention/plain_tiles.h"

namespace braid::attention {
namespace {

using namespace plain;

// A block has one tile of queries of one head and walks the keys it sees with a running maximum m and sum l per query.
template <class P>
__global__ void __launch_bounds__(kThreads) forward_kernel(Problem p) {
  extern __shared__ float shared[];
  float *q = shared, *kv = q + P::kTile * P::kStride, *scores = kv + P::kTile * P::kStride;
  const int64_t tiles = gridDim.x / p.H, h = blockIdx.x % p.H, hk = h / (p.H / p.HK);
  const Tile tile = find_tile(p, p.cu_q, P::kTile, tiles - 1 - blockIdx.x / p.H);  // those with the most keys first
  if (tile.first >= tile.lq) return;
  const int x = threadIdx.x % 16, y = threadIdx.x / 16;
  const int64_t count = min(int64_t{P::kTile}, tile.lq - tile.first);
  load_tile<P>(q, p.q, p.is_bf16, tile.q_begin + tile.first, count, h, p.H, p.D);
  float o[P::kRows][P::kColumns], m[P::kRows], l[P::kRows];
  clear<P>(o);
#pragma unroll
  for (int i = 0; i < P::kRows; ++i) m[i] = -INFINITY, l[i] = 0;
  const Range keys = keys_of(p, tile, tile.first, count);
  for (int64_t key = keys.begin; key < keys.end; key += P::kTile) {
    const int64_t num_keys = min(int64_t{P::kTile}, keys.end - key);
    __syncthreads();  // the values and scores of the last turn are read
    load_tile<P>(kv, p.k, p.is_bf16, tile.k_begin + key, num_keys, hk, p.HK, p.D);
    __syncthreads();
    float s[P::kRows][P::kRows];
    row_products<P>(q, kv, s);
#pragma unroll
    for (int i = 0; i < P::kRows; ++i) {
      const int row = y * P::kRows + i;
      float highest = m[i];
#pragma unroll
      for (int j = 0; j < P::kRows; ++j) {
        const bool visible = row < count && sees(p, tile.position(tile.first + row), key + x + 16 * j);
        s[i][j] = visible ? s[i][j] * p.scale : -INFINITY;
        highest = fmaxf(highest, s[i][j]);
      }
      highest = row_max(highest);
      const float base = highest == -INFINITY ? 0.0f : highest;  // no key seen yet: −inf − (−inf) would be NaN
      const float shrink = expf(m[i] - base);
      m[i] = highest;
      float sum = 0;
#pragma unroll
      for (int j = 0; j < P::kRows; ++j) sum += s[i][j] = expf(s[i][j] - base);
      l[i] = l[i] * shrink + row_sum(sum);
#pragma unroll
      for (int c = 0; c < P::kColumns; ++c) o[i][c] *= shrink;
    }
    store_scores<P>(scores, s);
    __syncthreads();  // the keys are read
    load_tile<P>(kv, p.v, p.is_bf16, tile.k_begin + key, num_keys, hk, p.HK, p.DV);
    __syncthreads();
    add_product<P>(scores, kv, o);
  }
#pragma unroll
  for (int i = 0; i < P::kRows; ++i) {
    const int row = y * P::kRows + i;
    if (row >= count) continue;
    const int64_t token = tile.q_begin + tile.first + row;
    store_row<P>(p.o, p.is_bf16, o[i], 1 / l[i], token, h, p.H, p.DV);
    if (x == 0) p.lse[token * p.H + h] = m[i] + logf(l[i]);
  }
}

}  // namespace

void plain_forward(Context& ctx, const Problem& problem) {
  dispatch_plan(problem, [&]<class P>() {
    const int64_t blocks = num_tiles(problem.Nq, problem.S, P::kTile) * problem.H;
    cuda::launch(ctx.stream(), "attention_forward", &forward_kernel<P>, config_for(blocks, 2 * P::tile_bytes() + P::score_bytes()), problem);
  });
}

}  // namespace braid::attention
