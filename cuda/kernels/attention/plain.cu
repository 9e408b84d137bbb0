#include "cuda/device/reduce.h"
#include "cuda/kernels/attention/plain.h"
#include "cuda/runtime/check.h"

namespace braid::attention {
namespace {

// 256 threads as 16 × 16: thread (x, y) has rows y·kRows … of a product and every 16th column from x on. Tiles lie in shared memory
// in float, zero outside, with one float of padding a row: 16 threads that read a column of 16 rows meet 16 banks.
template <int dim>
struct Plan {
  static constexpr int kDim = dim;
  static constexpr int kRows = dim > 128 ? 2 : 4;
  static constexpr int kTile = 16 * kRows;
  static constexpr int kColumns = dim / 16;
  static constexpr int kStride = dim + 1, kScoreStride = kTile + 1;
  static constexpr size_t tile_bytes() { return size_t{kTile} * kStride * sizeof(float); }
  static constexpr size_t score_bytes() { return size_t{kTile} * kScoreStride * sizeof(float); }
};
constexpr int kThreads = 256;

/// Rows [first, first + kTile) of head h of x [tokens, heads, dim]; rows from `count` on, and all when x is null, are zero.
template <class P, class T>
__device__ void load_tile(float* tile, const T* x, int64_t first, int64_t count, int64_t h, int64_t heads, int64_t dim) {
  for (int at = threadIdx.x; at < P::kTile * P::kDim; at += kThreads) {
    const int row = at / P::kDim, column = at % P::kDim;
    const bool inside = x && row < count && column < dim;
    tile[row * P::kStride + column] = inside ? device::to_float(x[((first + row) * heads + h) * dim + column]) : 0.0f;
  }
}

/// s = a b^T of two tiles.
template <class P>
__device__ void row_products(const float* a, const float* b, float (&s)[P::kRows][P::kRows]) {
  const int x = threadIdx.x % 16, y = threadIdx.x / 16;
#pragma unroll
  for (int i = 0; i < P::kRows; ++i)
#pragma unroll
    for (int j = 0; j < P::kRows; ++j) s[i][j] = 0;
#pragma unroll 4
  for (int d = 0; d < P::kDim; ++d) {
    float left[P::kRows], right[P::kRows];
#pragma unroll
    for (int i = 0; i < P::kRows; ++i) left[i] = a[(y * P::kRows + i) * P::kStride + d];
#pragma unroll
    for (int j = 0; j < P::kRows; ++j) right[j] = b[(x + 16 * j) * P::kStride + d];
#pragma unroll
    for (int i = 0; i < P::kRows; ++i)
#pragma unroll
      for (int j = 0; j < P::kRows; ++j) s[i][j] += left[i] * right[j];
  }
}

/// sums += scores · b.
template <class P>
__device__ void add_product(const float* scores, const float* b, float (&sums)[P::kRows][P::kColumns]) {
  const int x = threadIdx.x % 16, y = threadIdx.x / 16;
#pragma unroll 2
  for (int k = 0; k < P::kTile; ++k) {
    float left[P::kRows];
#pragma unroll
    for (int i = 0; i < P::kRows; ++i) left[i] = scores[(y * P::kRows + i) * P::kScoreStride + k];
#pragma unroll
    for (int c = 0; c < P::kColumns; ++c) {
      const float right = b[k * P::kStride + x + 16 * c];
#pragma unroll
      for (int i = 0; i < P::kRows; ++i) sums[i][c] += left[i] * right;
    }
  }
}

template <class P>
__device__ void store_scores(float* scores, const float (&s)[P::kRows][P::kRows]) {
  const int x = threadIdx.x % 16, y = threadIdx.x / 16;
#pragma unroll
  for (int i = 0; i < P::kRows; ++i)
#pragma unroll
    for (int j = 0; j < P::kRows; ++j) scores[(y * P::kRows + i) * P::kScoreStride + x + 16 * j] = s[i][j];
}

template <class P>
__device__ void clear(float (&sums)[P::kRows][P::kColumns]) {
#pragma unroll
  for (int i = 0; i < P::kRows; ++i)
#pragma unroll
    for (int c = 0; c < P::kColumns; ++c) sums[i][c] = 0;
}

/// Row i of the thread, times factor, to head h of to [tokens, heads, dim]; row counts from the token `first`.
template <class P, class T>
__device__ void store_row(T* to, const float (&sums)[P::kColumns], float factor, int64_t token, int64_t h, int64_t heads, int64_t dim) {
  const int x = threadIdx.x % 16;
#pragma unroll
  for (int c = 0; c < P::kColumns; ++c) {
    const int column = x + 16 * c;
    if (column < dim) to[(token * heads + h) * dim + column] = device::from_float<T>(sums[c] * factor);
  }
}

/// Over the 16 threads of a row.
__device__ float row_max(float x) {
#pragma unroll
  for (int offset = 8; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, offset));
  return x;
}
__device__ float row_sum(float x) {
#pragma unroll
  for (int offset = 8; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
  return x;
}

// A block has one tile of queries of one head and walks the keys it sees with a running maximum m and sum l per query.
template <class T, class P>
__global__ void __launch_bounds__(kThreads) forward_kernel(Problem p) {
  extern __shared__ float shared[];
  float *q = shared, *kv = q + P::kTile * P::kStride, *scores = kv + P::kTile * P::kStride;
  const int64_t tiles = gridDim.x / p.H, h = blockIdx.x % p.H, hk = h / (p.H / p.HK);
  const Tile tile = find_tile(p, p.cu_q, P::kTile, tiles - 1 - blockIdx.x / p.H);  // those with the most keys first
  if (tile.first >= tile.lq) return;
  const int x = threadIdx.x % 16, y = threadIdx.x / 16;
  const int64_t count = min(int64_t{P::kTile}, tile.lq - tile.first);
  load_tile<P>(q, static_cast<const T*>(p.q), tile.q_begin + tile.first, count, h, p.H, p.D);
  float o[P::kRows][P::kColumns], m[P::kRows], l[P::kRows];
  clear<P>(o);
#pragma unroll
  for (int i = 0; i < P::kRows; ++i) m[i] = -INFINITY, l[i] = 0;
  const Range keys = keys_of(p, tile, tile.first, count);
  for (int64_t key = keys.begin; key < keys.end; key += P::kTile) {
    const int64_t num_keys = min(int64_t{P::kTile}, keys.end - key);
    __syncthreads();  // the values and scores of the last turn are read
    load_tile<P>(kv, static_cast<const T*>(p.k), tile.k_begin + key, num_keys, hk, p.HK, p.D);
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
    load_tile<P>(kv, static_cast<const T*>(p.v), tile.k_begin + key, num_keys, hk, p.HK, p.DV);
    __syncthreads();
    add_product<P>(scores, kv, o);
  }
#pragma unroll
  for (int i = 0; i < P::kRows; ++i) {
    const int row = y * P::kRows + i;
    if (row >= count) continue;
    const int64_t token = tile.q_begin + tile.first + row;
    store_row<P>(static_cast<T*>(p.o), o[i], 1 / l[i], token, h, p.H, p.DV);
    if (x == 0) p.lse[token * p.H + h] = m[i] + logf(l[i]);
  }
}

// A warp per query and head.
template <class T>
struct DeltaParams {
  const T *o, *d_o;    // [rows, DV]; d_o may be null
  const float* d_lse;  // [rows] or null
  float* delta;        // [rows]
  int64_t rows, DV;
};

template <class T>
__global__ void __launch_bounds__(kThreads) delta_kernel(DeltaParams<T> p) {
  const int lane = threadIdx.x % 32;
  const int64_t row = int64_t{blockIdx.x} * (kThreads / 32) + threadIdx.x / 32;
  if (row >= p.rows) return;
  float sum = 0;
  if (p.d_o)
    for (int64_t c = lane; c < p.DV; c += 32) sum += device::to_float(p.d_o[row * p.DV + c]) * device::to_float(p.o[row * p.DV + c]);
  sum = device::warp_sum(sum);
  if (lane == 0) p.delta[row] = sum - (p.d_lse ? p.d_lse[row] : 0.0f);
}

// d_q = scale · Σ_j P_j (<d_o, v_j> − delta) k_j: the forward's walk, with P from the saved lse.
template <class T, class P>
__global__ void __launch_bounds__(kThreads) backward_q_kernel(Problem p) {
  extern __shared__ float shared[];
  constexpr int kSize = P::kTile * P::kStride;
  float *q = shared, *d_o = q + kSize, *kv = d_o + kSize, *scores = kv + kSize;
  const int64_t tiles = gridDim.x / p.H, h = blockIdx.x % p.H, hk = h / (p.H / p.HK);
  const Tile tile = find_tile(p, p.cu_q, P::kTile, tiles - 1 - blockIdx.x / p.H);
  if (tile.first >= tile.lq) return;
  const int x = threadIdx.x % 16, y = threadIdx.x / 16;
  const int64_t count = min(int64_t{P::kTile}, tile.lq - tile.first), token = tile.q_begin + tile.first;
  load_tile<P>(q, static_cast<const T*>(p.q), token, count, h, p.H, p.D);
  load_tile<P>(d_o, static_cast<const T*>(p.d_o), token, count, h, p.H, p.DV);
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
    load_tile<P>(kv, static_cast<const T*>(p.v), tile.k_begin + key, num_keys, hk, p.HK, p.DV);
    __syncthreads();
    float s[P::kRows][P::kRows], d_p[P::kRows][P::kRows];
    row_products<P>(d_o, kv, d_p);
    __syncthreads();  // the values are read
    load_tile<P>(kv, static_cast<const T*>(p.k), tile.k_begin + key, num_keys, hk, p.HK, p.D);
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
    if (row < count) store_row<P>(static_cast<T*>(p.d_q), d_q[i], p.scale, token + row, h, p.H, p.D);
  }
}

// A block has one tile of keys of one key head and walks the queries that see it, of one query head of the group after the other:
// scores are transposed, a row per key.
template <class T, class P>
__global__ void __launch_bounds__(kThreads) backward_kv_kernel(Problem p) {
  extern __shared__ float shared[];
  constexpr int kSize = P::kTile * P::kStride;
  float *k = shared, *v = k + kSize, *q = v + kSize, *scores = q + kSize;
  const int64_t hk = blockIdx.x % p.HK, group = p.H / p.HK;
  const Tile tile = find_tile(p, p.cu_k, P::kTile, blockIdx.x / p.HK);
  if (tile.first >= tile.lk) return;
  const int x = threadIdx.x % 16, y = threadIdx.x / 16;
  const int64_t count = min(int64_t{P::kTile}, tile.lk - tile.first), token = tile.k_begin + tile.first;
  load_tile<P>(k, static_cast<const T*>(p.k), token, count, hk, p.HK, p.D);
  load_tile<P>(v, static_cast<const T*>(p.v), token, count, hk, p.HK, p.DV);
  float d_k[P::kRows][P::kColumns], d_v[P::kRows][P::kColumns];
  clear<P>(d_k);
  clear<P>(d_v);
  const Range queries = queries_of(p, tile, tile.first, count);
  for (int64_t h = hk * group; h < (hk + 1) * group; ++h) {
    for (int64_t query = queries.begin; query < queries.end; query += P::kTile) {
      const int64_t num_queries = min(int64_t{P::kTile}, queries.end - query), first = tile.q_begin + query;
      __syncthreads();  // the queries and scores of the last turn are read
      load_tile<P>(q, static_cast<const T*>(p.q), first, num_queries, h, p.H, p.D);
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
      load_tile<P>(q, static_cast<const T*>(p.d_o), first, num_queries, h, p.H, p.DV);
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
      load_tile<P>(q, static_cast<const T*>(p.q), first, num_queries, h, p.H, p.D);
      __syncthreads();
      add_product<P>(scores, q, d_k);
    }
  }
#pragma unroll
  for (int i = 0; i < P::kRows; ++i) {
    const int row = y * P::kRows + i;
    if (row >= count) continue;
    if (p.d_k) store_row<P>(static_cast<T*>(p.d_k), d_k[i], p.scale, token + row, hk, p.HK, p.D);
    if (p.d_v) store_row<P>(static_cast<T*>(p.d_v), d_v[i], 1, token + row, hk, p.HK, p.DV);
  }
}

/// body.operator()<T, Plan>() for the dtype and the smallest plan that holds both head dimensions.
template <class Body>
void dispatch(DType dtype, const Problem& problem, Body&& body) {
  const int64_t dim = problem.D > problem.DV ? problem.D : problem.DV;
  const auto with = [&]<class T>() {
    if (dim <= 64) body.template operator()<T, Plan<64>>();
    else if (dim <= 128) body.template operator()<T, Plan<128>>();
    else body.template operator()<T, Plan<256>>();
  };
  if (dtype == DType::bf16) with.template operator()<device::bf16>();
  else with.template operator()<float>();
}

cuda::LaunchConfig config_for(int64_t blocks, size_t shared_bytes) {
  return {.grid = static_cast<unsigned>(blocks), .block = kThreads, .shared_bytes = shared_bytes};
}

}  // namespace

void plain_forward(Context& ctx, DType dtype, const Problem& problem) {
  dispatch(dtype, problem, [&]<class T, class P>() {
    const int64_t blocks = num_tiles(problem.Nq, problem.S, P::kTile) * problem.H;
    cuda::launch(ctx.stream(), "attention_forward", &forward_kernel<T, P>, config_for(blocks, 2 * P::tile_bytes() + P::score_bytes()), problem);
  });
}

void plain_backward(Context& ctx, DType dtype, const Problem& problem) {
  dispatch(dtype, problem, [&]<class T, class P>() {
    const size_t shared_bytes = 3 * P::tile_bytes() + P::score_bytes();
    const int64_t q_blocks = num_tiles(problem.Nq, problem.S, P::kTile) * problem.H;
    const int64_t k_blocks = num_tiles(problem.Nk, problem.S, P::kTile) * problem.HK;
    if (problem.d_q) cuda::launch(ctx.stream(), "attention_backward_q", &backward_q_kernel<T, P>, config_for(q_blocks, shared_bytes), problem);
    if (problem.d_k || problem.d_v)
      cuda::launch(ctx.stream(), "attention_backward_kv", &backward_kv_kernel<T, P>, config_for(k_blocks, shared_bytes), problem);
  });
}

void launch_delta(Context& ctx, DType dtype, const Problem& problem, const float* d_lse, float* delta) {
  const int64_t rows = problem.Nq * problem.H;
  const cuda::LaunchConfig config = config_for((rows + kThreads / 32 - 1) / (kThreads / 32), 0);
  const auto start = [&]<class T>() {
    const DeltaParams<T> params{static_cast<const T*>(problem.o), static_cast<const T*>(problem.d_o), d_lse, delta, rows, problem.DV};
    cuda::launch(ctx.stream(), "attention_delta", &delta_kernel<T>, config, params);
  };
  if (dtype == DType::bf16) start.template operator()<device::bf16>();
  else start.template operator()<float>();
}

}  // namespace braid::attention
