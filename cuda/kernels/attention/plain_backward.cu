#include "cuda/kernels/attention/plain.h"
#include "cuda/kernels/attention/plain_tiles.h"

namespace braid::attention {
namespace {

using namespace plain;

// d_q = scale · Σ_j P_j (<d_o, v_j> − delta) k_j: the forward's walk, with P from the saved lse.
template <class P>
__global__ void __launch_bounds__(kThreads) backward_q_kernel(Problem p) {
  extern __shared__ float shared[];
  constexpr int kSize = P::kTile * P::kStride;
  float *q = shared, *d_o = q + kSize, *kv = d_o + kSize, *scores = kv + kSize;
  const int64_t tiles = gridDim.x / p.H, h = blockIdx.x % p.H, hk = h / (p.H / p.HK);
  const Tile tile = find_tile(p, p.cu_q, P::kTile, tiles - 1 - blockIdx.x / p.H);
  if (tile.first >= tile.lq) return;
  const int x = threadIdx.x % 16, y = threadIdx.x / 16;
  const int64_t count = min(int64_t{P::kTile}, tile.lq - tile.first), token = tile.q_begin + tile.first;
  load_tile<P>(q, p.q, p.is_bf16, token, count, h, p.H, p.D);
  load_tile<P>(d_o, p.d_o, p.is_bf16, token, count, h, p.H, p.DV);
  float d_q[P::kRows][P::kColumns], lse[P::kRows], delta[P::kRows];
  clear<P>(d_q);
#pragma unroll
  for (int i = 0; i < P::kRows; ++i) {
    const int row = y * P::kRows + i;
    lse[i] = row < count ? p.lse[(token + row) * p.H + h] : 0.0f;
    delta[i] = row < count ? p.delta[(token + row) * p.H + h] : 0.0f;
  }
  const Range keys = keys_of(p, tile, tile.first, count);
  for (int64_t key = keys.begin; key < keys.end; key += P::kTile) {
    const int64_t num_keys = min(int64_t{P::kTile}, keys.end - key);
    __syncthreads();  // the keys and scores of the last turn are read
    load_tile<P>(kv, p.v, p.is_bf16, tile.k_begin + key, num_keys, hk, p.HK, p.DV);
    __syncthreads();
    float s[P::kRows][P::kRows], d_p[P::kRows][P::kRows];
    row_products<P>(d_o, kv, d_p);
    __syncthreads();  // the values are read
    load_tile<P>(kv, p.k, p.is_bf16, tile.k_begin + key, num_keys, hk, p.HK, p.D);
    __syncthreads();
    row_products<P>(q, kv, s);
#pragma unroll
    for (int i = 0; i < P::kRows; ++i) {
      const int row = y * P::kRows + i;
#pragma unroll
      for (int j = 0; j < P::kRows; ++j) {
        const bool visible = row < count && sees(p, tile.position(tile.first + row), key + x + 16 * j);
        s[i][j] = visible ? expf(s[i][j] * p.scale - lse[i]) * (d_p[i][j] - delta[i]) : 0.0f;
      }
    }
    store_scores<P>(scores, s);
    __syncthreads();
    add_product<P>(scores, kv, d_q);
  }
#pragma unroll
  for (int i = 0; i < P::kRows; ++i) {
    const int row = y * P::kRows + i;
    if (row < count) store_row<P>(p.d_q, p.is_bf16, d_q[i], p.scale, token + row, h, p.H, p.D);
  }
}

// A block has one tile of keys of one key head and walks the queries that see it, of one query head of the group after the other:
// scores are transposed, a row per key.
template <class P>
__global__ void __launch_bounds__(kThreads) backward_kv_kernel(Problem p) {
  extern __shared__ float shared[];
  constexpr int kSize = P::kTile * P::kStride;
  float *k = shared, *v = k + kSize, *q = v + kSize, *scores = q + kSize;
  const int64_t hk = blockIdx.x % p.HK, group = p.H / p.HK;
  const Tile tile = find_tile(p, p.cu_k, P::kTile, blockIdx.x / p.HK);
  if (tile.first >= tile.lk) return;
  const int x = threadIdx.x % 16, y = threadIdx.x / 16;
  const int64_t count = min(int64_t{P::kTile}, tile.lk - tile.first), token = tile.k_begin + tile.first;
  load_tile<P>(k, p.k, p.is_bf16, token, count, hk, p.HK, p.D);
  load_tile<P>(v, p.v, p.is_bf16, token, count, hk, p.HK, p.DV);
  float d_k[P::kRows][P::kColumns], d_v[P::kRows][P::kColumns];
  clear<P>(d_k);
  clear<P>(d_v);
  const Range queries = queries_of(p, tile, tile.first, count);
  for (int64_t h = hk * group; h < (hk + 1) * group; ++h) {
    for (int64_t query = queries.begin; query < queries.end; query += P::kTile) {
      const int64_t num_queries = min(int64_t{P::kTile}, queries.end - query), first = tile.q_begin + query;
      __syncthreads();  // the queries and scores of the last turn are read
      load_tile<P>(q, p.q, p.is_bf16, first, num_queries, h, p.H, p.D);
      __syncthreads();
      float s[P::kRows][P::kRows], d_s[P::kRows][P::kRows];
      row_products<P>(k, q, s);
#pragma unroll
      for (int j = 0; j < P::kRows; ++j) {
        const int column = x + 16 * j;
        const float lse = column < num_queries ? p.lse[(first + column) * p.H + h] : 0.0f;
#pragma unroll
        for (int i = 0; i < P::kRows; ++i) {
          const int row = y * P::kRows + i;
          const bool visible = row < count && column < num_queries && sees(p, tile.position(query + column), tile.first + row);
          s[i][j] = visible ? expf(s[i][j] * p.scale - lse) : 0.0f;
        }
      }
      store_scores<P>(scores, s);
      __syncthreads();  // the queries are read
      load_tile<P>(q, p.d_o, p.is_bf16, first, num_queries, h, p.H, p.DV);
      __syncthreads();
      row_products<P>(v, q, d_s);
      add_product<P>(scores, q, d_v);
#pragma unroll
      for (int j = 0; j < P::kRows; ++j) {
        const int column = x + 16 * j;
        const float delta = column < num_queries ? p.delta[(first + column) * p.H + h] : 0.0f;
#pragma unroll
        for (int i = 0; i < P::kRows; ++i) d_s[i][j] = s[i][j] * (d_s[i][j] - delta);
      }
      __syncthreads();  // the scores and d_o are read
      store_scores<P>(scores, d_s);
      load_tile<P>(q, p.q, p.is_bf16, first, num_queries, h, p.H, p.D);
      __syncthreads();
      add_product<P>(scores, q, d_k);
    }
  }
#pragma unroll
  for (int i = 0; i < P::kRows; ++i) {
    const int row = y * P::kRows + i;
    if (row >= count) continue;
    if (p.d_k) store_row<P>(p.d_k, p.is_bf16, d_k[i], p.scale, token + row, hk, p.HK, p.D);
    if (p.d_v) store_row<P>(p.d_v, p.is_bf16, d_v[i], 1, token + row, hk, p.HK, p.DV);
  }
}

}  // namespace

void plain_backward(Context& ctx, const Problem& problem) {
  dispatch_plan(problem, [&]<class P>() {
    const size_t shared_bytes = 3 * P::tile_bytes() + P::score_bytes();
    const int64_t q_blocks = num_tiles(problem.Nq, problem.S, P::kTile) * problem.H;
    const int64_t k_blocks = num_tiles(problem.Nk, problem.S, P::kTile) * problem.HK;
    if (problem.d_q) cuda::launch(ctx.stream(), "attention_backward_q", &backward_q_kernel<P>, config_for(q_blocks, shared_bytes), problem);
    if (problem.d_k || problem.d_v)
      cuda::launch(ctx.stream(), "attention_backward_kv", &backward_kv_kernel<P>, config_for(k_blocks, shared_bytes), problem);
  });
}

}  // namespace braid::attention
