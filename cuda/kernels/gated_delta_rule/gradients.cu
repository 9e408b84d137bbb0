// The gradients of q, k, beta and log_decay from both walks' states. All chunks in parallel; a block has a chunk and a value head.
//   Y = q_in ∘ (dO S^T) + E k,   X = in ∘ (dR S^T) + F k,   Z = out ∘ (U dS^T) + E^T q − (beta F)^T k
//   with E = lower part of scale (dO U^T) ∘ decay and F = strictly lower part of (dR U^T) ∘ decay, both over the norms |q_i| or |k_i| and |k_j|
//   d_q = |q| Y,   d_k = |k| (Z − beta X),   d_beta = dR · v − k · X      (of normalised q and k)
// d_log_decay of token t: what crosses it. From states, q · Y and −beta k · X of tokens from t on, k · Z of those before t, total <S, dS>;
// from pairs j < t ≤ i, T_ij = (dO U^T)_ij P_ij − beta_i (dR U^T)_ij M_ij, whose sums over rows and over columns cancel exactly.
#include "cuda/device/reduce.h"
#include "cuda/kernels/gated_delta_rule/chunks.h"
#include "cuda/kernels/gated_delta_rule/tiles.h"
#include "cuda/runtime/check.h"

namespace braid::delta_cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kColumns = 64;  // of V at a time
constexpr int kTileBytes = kSquare * 2;

/// `keys` channels of K at a time; 16 warps: 16 tokens × a quarter of the channels (or of the other tokens) each.
template <int keys>
struct Plan {
  static constexpr int kKeys = keys;
  static constexpr int kTiles = keys / 32;  // n-tiles of a warp
  // A stage: dO, dR, U, v [64 tokens, 64], S, dS [64, keys].
  static constexpr int kDr = kTileBytes, kU = 2 * kTileBytes, kV = 3 * kTileBytes, kState = 4 * kTileBytes;
  static constexpr int kDState = kState + kColumns * keys * 2, kStageBytes = kDState + kColumns * keys * 2;
  static constexpr int kStages = 2;
  // Then k, q [64, keys], E, F, beta F [64, 64], factors and sums.
  static constexpr int kKey = kStages * kStageBytes, kQuery = kKey + kChunk * keys * 2, kE = kQuery + kChunk * keys * 2;
  static constexpr int kF = kE + kTileBytes, kBetaF = kF + kTileBytes, kFactors = kBetaF + kTileBytes;
  static constexpr int kSums = kFactors + kNumFactors * kChunk * 4;
  static constexpr int kNumSums = 7;  // of each token, from each quarter
  static constexpr int kSharedBytes = kSums + kNumSums * 4 * kChunk * 4;
};

/// Sums over channels or tokens, each quarter's in a row of its own so that they add up in a fixed order.
enum Sum : int { kReads, kWrites, kRows, kColumnsOf, kValues, kBetaKeys, kStates };

struct Sums {
  float* at;  // [kNumSums][4][64]
  __device__ float& of(int kind, int quarter, int token) const { return at[(kind * 4 + quarter) * kChunk + token]; }
  __device__ float total(int kind, int token) const { return of(kind, 0, token) + of(kind, 1, token) + of(kind, 2, token) + of(kind, 3, token); }
};

__device__ inline float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

/// Element (row, column) and its neighbour of a tile.
template <int width>
__device__ inline float2 pair_of(const unsigned char* tile, int row, int column) {
  const uint32_t pair = *reinterpret_cast<const uint32_t*>(tile + tile_offset<width>(row, column / 8 * 8) + column % 8 * 2);
  return make_float2(device::low_bf16(pair), device::high_bf16(pair));
}

template <class P>
__device__ inline void load_stage(const GradientParams& params, const Chunk& chunk, int64_t lane, int64_t row, int column, int key, uint32_t stage) {
  const Problem& p = params.backward.problem;
  const int64_t stride = p.HV * p.V, at = row * p.V + column, state = (lane * p.V + column) * p.K + key;
  const bf16* d_o = params.backward.d_o;
  copy_rows<kColumns, kThreads>(stage, d_o ? d_o + at : p.u, stride, d_o ? chunk.count : 0, threadIdx.x);
  copy_rows<kColumns, kThreads>(stage + P::kDr, params.backward.d_r + at, stride, chunk.count, threadIdx.x);
  copy_rows<kColumns, kThreads>(stage + P::kU, p.u + at, stride, chunk.count, threadIdx.x);
  copy_rows<kColumns, kThreads>(stage + P::kV, p.v + at, stride, chunk.count, threadIdx.x);
  copy_rows<P::kKeys, kThreads>(stage + P::kState, p.states + state, p.K, kColumns, threadIdx.x);
  copy_rows<P::kKeys, kThreads>(stage + P::kDState, params.backward.d_states + state, p.K, kColumns, threadIdx.x);
  device::cp_async_commit();
}

/// What a warp sums up over V.
template <class P>
struct Products {
  float y[P::kTiles][4], x[P::kTiles][4], z[P::kTiles][4];  // [16 tokens, keys / 4]
  float d_p[2][4], d_m[2][4];                               // [16 tokens i, 16 tokens j]

  __device__ void clear_states() {
#pragma unroll
    for (int n = 0; n < P::kTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) y[n][i] = x[n][i] = z[n][i] = 0;
  }
  __device__ void clear_squares() {
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) d_p[n][i] = d_m[n][i] = 0;
  }

  __device__ void add(uint32_t stage, int block, int quarter, bool squares) {
    const uint32_t rows = lane_offset<kColumns, false>(), others = lane_offset<kColumns, true>(), states = lane_offset<P::kKeys, false>();
#pragma unroll
    for (int c = 0; c < kColumns; c += 16) {
      uint32_t d_o[4], d_r[4], u[4], b[4];
      device::ldmatrix_x4(d_o, stage + block_at<kColumns>(rows, 0, c) + block * 16 * kColumns * 2);
      device::ldmatrix_x4(d_r, stage + P::kDr + block_at<kColumns>(rows, 0, c) + block * 16 * kColumns * 2);
      device::ldmatrix_x4(u, stage + P::kU + block_at<kColumns>(rows, 0, c) + block * 16 * kColumns * 2);
      if (squares && quarter <= block) {
        device::ldmatrix_x4(b, stage + P::kU + block_at<kColumns>(others, 0, c) + quarter * 16 * kColumns * 2);
        mma_two(d_p[0], d_p[1], d_o, b);
        mma_two(d_m[0], d_m[1], d_r, b);
      }
#pragma unroll
      for (int n = 0; n < P::kTiles; n += 2) {
        const uint32_t at = stage + P::kState + state_block(states, c, n, quarter);
        device::ldmatrix_x4_transposed(b, at);
        mma_two(y[n], y[n + 1], d_o, b);
        mma_two(x[n], x[n + 1], d_r, b);
        device::ldmatrix_x4_transposed(b, at + P::kDState - P::kState);
        mma_two(z[n], z[n + 1], u, b);
      }
    }
  }
  /// Block [16, 16] of a tile [.., keys] at `row` and the warp's n-tiles n, n + 1.
  __device__ static uint32_t state_block(uint32_t lane, int row, int n, int quarter) {
    const int column = quarter * (P::kKeys / 4) + 8 * n;
    return (lane ^ (column * 2 % 128)) + row * P::kKeys * 2 + column * 2 / 128 * 128;
  }
};

/// The sum over a stage's part of S ∘ dS that this thread reads.
template <class P>
__device__ inline float dot_states(const unsigned char* stage) {
  float sum = 0;
#pragma unroll
  for (int at = threadIdx.x * 16; at < kColumns * P::kKeys * 2; at += kThreads * 16) {
    const uint4 s = *reinterpret_cast<const uint4*>(stage + P::kState + at), d = *reinterpret_cast<const uint4*>(stage + P::kDState + at);
    const auto add = [&](uint32_t a, uint32_t b) { sum += device::low_bf16(a) * device::low_bf16(b) + device::high_bf16(a) * device::high_bf16(b); };
    add(s.x, d.x), add(s.y, d.y), add(s.z, d.z), add(s.w, d.w);
  }
  return sum;
}

/// The sum over a stage's columns of dR ∘ v for token threadIdx.x / 8, an eighth of it in each thread.
template <class P>
__device__ inline float dot_values(const unsigned char* stage) {
  const uint4 r = *reinterpret_cast<const uint4*>(stage + P::kDr + threadIdx.x * 16),
              v = *reinterpret_cast<const uint4*>(stage + P::kV + threadIdx.x * 16);
  float sum = 0;
  const auto add = [&](uint32_t a, uint32_t b) { sum += device::low_bf16(a) * device::low_bf16(b) + device::high_bf16(a) * device::high_bf16(b); };
  add(r.x, v.x), add(r.y, v.y), add(r.z, v.z), add(r.w, v.w);
  return sum;
}

/// E, F and beta F to shared memory, T summed over rows and columns. kk: this warp's part of k k^T.
template <class P>
__device__ inline void finish_squares(const Products<P>& sums, const float (&kk)[2][4], unsigned char* memory, const bf16* scores, int block,
                                      int quarter) {
  const float* f = reinterpret_cast<const float*>(memory + P::kFactors);
  const Sums out{reinterpret_cast<float*>(memory + P::kSums)};
  const int lane = threadIdx.x % 32;
  float rows[2] = {}, columns[2][2] = {};
#pragma unroll
  for (int n = 0; n < 2; ++n) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = 16 * block + lane / 4 + 8 * half, j = 16 * quarter + 8 * n + 2 * (lane % 4);
      const float beta = f[kBeta * kChunk + i];
      const float2 p = pair_of<kChunk>(reinterpret_cast<const unsigned char*>(scores), i, j);
      float e[2], g[2];
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const bool lower = j + c < i;
        const float decay = j + c <= i ? expf(f[kLogDecay * kChunk + i] - f[kLogDecay * kChunk + j + c]) * f[kKeyNorm * kChunk + j + c] : 0.0f;
        e[c] = sums.d_p[n][2 * half + c] * decay * f[kQueryNorm * kChunk + i];
        g[c] = lower ? sums.d_m[n][2 * half + c] * decay * f[kKeyNorm * kChunk + i] : 0.0f;
        const float t = lower ? sums.d_p[n][2 * half + c] * (c ? p.y : p.x) - beta * g[c] * kk[n][2 * half + c] : 0.0f;
        rows[half] += t;
        columns[n][c] += t;
      }
      const uint32_t at = tile_offset<kChunk>(i, j / 8 * 8) + j % 8 * 2;
      *reinterpret_cast<uint32_t*>(memory + P::kE + at) = device::pack_bf16(e[0], e[1]);
      *reinterpret_cast<uint32_t*>(memory + P::kF + at) = device::pack_bf16(g[0], g[1]);
      *reinterpret_cast<uint32_t*>(memory + P::kBetaF + at) = device::pack_bf16(-beta * g[0], -beta * g[1]);
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float row = quad_sum(rows[half]);
    if (lane % 4 == 0) out.of(kRows, quarter, 16 * block + lane / 4 + 8 * half) = row;
  }
#pragma unroll
  for (int n = 0; n < 2; ++n)
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      float column = columns[n][c];
#pragma unroll
      for (int offset = 4; offset < 32; offset *= 2) column += __shfl_xor_sync(0xffffffffu, column, offset);
      if (lane < 4) out.of(kColumnsOf, block, 16 * quarter + 8 * n + 2 * lane + c) = column;
    }
}

/// Rows of the sums times `factor`, and their products with the tile's rows summed over the warp's channels.
template <class P>
__device__ inline void scale_rows(float (&c)[P::kTiles][4], const float* factor, int block) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float f = factor[16 * block + threadIdx.x % 32 / 4 + 8 * half];
#pragma unroll
    for (int n = 0; n < P::kTiles; ++n) c[n][2 * half] *= f, c[n][2 * half + 1] *= f;
  }
}
template <class P>
__device__ inline void dot_rows(const float (&c)[P::kTiles][4], const unsigned char* tile, int block, int quarter, float (&dots)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float dot = 0;
#pragma unroll
    for (int n = 0; n < P::kTiles; ++n) {
      const int row = 16 * block + threadIdx.x % 32 / 4 + 8 * half, column = quarter * (P::kKeys / 4) + 8 * n + 2 * (threadIdx.x % 4);
      const float2 x = pair_of<P::kKeys>(tile, row, column);
      dot += c[n][2 * half] * x.x + c[n][2 * half + 1] * x.y;
    }
    dots[half] = quad_sum(dot);
  }
}

/// The parts that stay within the chunk: y += E k, x += F k, z += E^T q − (beta F)^T k.
template <class P>
__device__ inline void add_squares(Products<P>& sums, uint32_t memory, int block, int quarter) {
  const uint32_t by_columns = lane_offset<kChunk, false>(), by_rows = lane_offset<kChunk, true>(), keys = lane_offset<P::kKeys, false>();
#pragma unroll
  for (int l = 0; l < 4; ++l) {
    uint32_t e[4], f[4], k[4], q[4];
    if (l <= block) {
      device::ldmatrix_x4(e, memory + P::kE + block_at<kChunk>(by_columns, 0, 16 * l) + block * 16 * kChunk * 2);
      device::ldmatrix_x4(f, memory + P::kF + block_at<kChunk>(by_columns, 0, 16 * l) + block * 16 * kChunk * 2);
#pragma unroll
      for (int n = 0; n < P::kTiles; n += 2) {
        device::ldmatrix_x4_transposed(k, memory + P::kKey + Products<P>::state_block(keys, 16 * l, n, quarter));
        mma_two(sums.y[n], sums.y[n + 1], e, k);
        mma_two(sums.x[n], sums.x[n + 1], f, k);
      }
    }
    if (l >= block) {
      const uint32_t at = (by_rows ^ (block * 32)) + 16 * l * kChunk * 2;
      device::ldmatrix_x4_transposed(e, memory + P::kE + at);
      device::ldmatrix_x4_transposed(f, memory + P::kBetaF + at);
#pragma unroll
      for (int n = 0; n < P::kTiles; n += 2) {
        device::ldmatrix_x4_transposed(k, memory + P::kKey + Products<P>::state_block(keys, 16 * l, n, quarter));
        device::ldmatrix_x4_transposed(q, memory + P::kQuery + Products<P>::state_block(keys, 16 * l, n, quarter));
        mma_two(sums.z[n], sums.z[n + 1], e, q);
        mma_two(sums.z[n], sums.z[n + 1], f, k);
      }
    }
  }
}

/// Rows of d_q and d_k of the warp's channels.
template <class P>
__device__ inline void store_rows(const Products<P>& sums, const float* f, const GradientParams& params, const Chunk& chunk, int64_t row, int key,
                                  int block, int quarter) {
  const Problem& p = params.backward.problem;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int i = 16 * block + threadIdx.x % 32 / 4 + 8 * half;
    const float beta = f[kBeta * kChunk + i], q_length = p.scale / f[kQueryNorm * kChunk + i], k_length = 1 / f[kKeyNorm * kChunk + i];
    const int64_t at = (row + i * p.HV) * p.K + key + quarter * (P::kKeys / 4) + pair_column();
#pragma unroll
    for (int n = 0; n < P::kTiles; n += 2) {
      uint32_t d_q[2], d_k[2];
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        const float(&y)[4] = sums.y[n + m], (&x)[4] = sums.x[n + m], (&z)[4] = sums.z[n + m];
        d_q[m] = device::pack_bf16(q_length * y[2 * half], q_length * y[2 * half + 1]);
        d_k[m] = device::pack_bf16(k_length * (z[2 * half] - beta * x[2 * half]), k_length * (z[2 * half + 1] - beta * x[2 * half + 1]));
      }
      const uint2 q = paired(d_q[0], d_q[1]), k = paired(d_k[0], d_k[1]);
      if (i >= chunk.count) continue;
      if (params.d_q) *reinterpret_cast<uint2*>(params.d_q + at + 8 * n) = q;
      if (params.d_k) *reinterpret_cast<uint2*>(params.d_k + at + 8 * n) = k;
    }
  }
}

/// d_beta and d_log_decay from the sums, by the first 64 threads.
template <class P>
__device__ inline void store_gates(const GradientParams& params, const Chunk& chunk, int64_t row, unsigned char* memory) {
  const float* f = reinterpret_cast<const float*>(memory + P::kFactors);
  const Sums sums{reinterpret_cast<float*>(memory + P::kSums)};
  const int i = threadIdx.x;
  const int64_t at = row + i * params.backward.problem.HV;
  if (params.d_beta && i < kChunk && i < chunk.count) params.d_beta[at] = sums.of(kValues, 0, i) - sums.total(kBetaKeys, i);
  if (!params.d_log_decay) return;
  float* from_here = &sums.of(kValues, 2, 0);  // free rows
  float* before = &sums.of(kValues, 3, 0);
  if (i < kChunk) {
    from_here[i] = sums.total(kReads, i) + sums.total(kRows, i) - sums.total(kColumnsOf, i);
    before[i] = sums.total(kWrites, i);
  }
  __syncthreads();
  if (i >= kChunk || i >= chunk.count) return;
  float states = 0, crossing = 0, writes = 0;
  for (int w = 0; w < kThreads / 32; ++w) states += sums.of(kStates, 0, w);
  for (int l = kChunk - 1; l >= i; --l) crossing += from_here[l];
  for (int l = 0; l < i; ++l) writes += before[l];
  params.d_log_decay[at] = crossing + writes + f[kTotal * kChunk] * states;
}

template <class P>
__global__ void __launch_bounds__(kThreads, 1) gradient_kernel(GradientParams params) {
  extern __shared__ __align__(128) unsigned char memory[];
  const Problem& p = params.backward.problem;
  const Chunk chunk = chunk_of(p, blockIdx.x);
  if (chunk.count == 0) return;
  const uint32_t start = device::shared_address(memory);
  const int64_t j = blockIdx.y, head = j / (p.HV / p.H), lane = blockIdx.x * p.HV + j, row = chunk.first * p.HV + j;
  const int warp = threadIdx.x / 32, block = warp % 4, quarter = warp / 4, token = 16 * block + threadIdx.x % 32 / 4;
  const float* f = reinterpret_cast<const float*>(memory + P::kFactors);
  const Sums out{reinterpret_cast<float*>(memory + P::kSums)};
  const int slices = static_cast<int>(p.V / kColumns);
  copy_bytes<kNumFactors * kChunk * 4, kThreads>(start + P::kFactors, p.factors + lane * kNumFactors * kChunk, threadIdx.x);
  Products<P> sums;
  sums.clear_squares();
  float kk[2][4] = {}, states = 0, values = 0, reads[2] = {}, writes[2] = {}, beta_keys[2] = {};
  // E and F come with the first channels and need k k^T over all of them, which is summed before.
  for (int key = 0; key < p.K; key += P::kKeys) {
    if (key) __syncthreads();
    copy_rows<P::kKeys, kThreads>(start + P::kKey, p.k + (chunk.first * p.H + head) * p.K + key, p.H * p.K, chunk.count, threadIdx.x);
    device::cp_async_commit();
    device::cp_async_wait<0>();
    __syncthreads();
    const uint32_t by_columns = lane_offset<P::kKeys, false>(), by_rows = lane_offset<P::kKeys, true>();
    if (quarter > block || !params.d_log_decay) continue;
#pragma unroll 4
    for (int c = 0; c < P::kKeys; c += 16) {
      uint32_t a[4], b[4];
      device::ldmatrix_x4(a, start + P::kKey + block_at<P::kKeys>(by_columns, 0, c) + block * 16 * P::kKeys * 2);
      device::ldmatrix_x4(b, start + P::kKey + block_at<P::kKeys>(by_rows, 0, c) + quarter * 16 * P::kKeys * 2);
      mma_two(kk[0], kk[1], a, b);
    }
  }
  for (int key = 0; key < p.K; key += P::kKeys) {
    __syncthreads();
    if (p.K > P::kKeys)
      copy_rows<P::kKeys, kThreads>(start + P::kKey, p.k + (chunk.first * p.H + head) * p.K + key, p.H * p.K, chunk.count, threadIdx.x);
    copy_rows<P::kKeys, kThreads>(start + P::kQuery, p.q + (chunk.first * p.H + head) * p.K + key, p.H * p.K, chunk.count, threadIdx.x);
    sums.clear_states();
    load_stage<P>(params, chunk, lane, row, 0, key, start);
    for (int slice = 0; slice < slices; ++slice) {
      const int offset = slice % 2 * P::kStageBytes;
      if (slice + 1 < slices) {
        load_stage<P>(params, chunk, lane, row, (slice + 1) * kColumns, key, start + (slice + 1) % 2 * P::kStageBytes);
        device::cp_async_wait<1>();
      } else {
        device::cp_async_wait<0>();
      }
      __syncthreads();
      sums.add(start + offset, block, quarter, key == 0);
      if (params.d_log_decay) states += dot_states<P>(memory + offset);
      if (key == 0) values += dot_values<P>(memory + offset);
      __syncthreads();
    }
    if (key == 0) {
      finish_squares<P>(sums, kk, memory, p.squares + (3 * lane + 2) * kSquare, block, quarter);
      __syncthreads();
    }
    float dots[2];
    scale_rows<P>(sums.y, f + kQueryIn * kChunk, block);
    scale_rows<P>(sums.x, f + kKeyIn * kChunk, block);
    scale_rows<P>(sums.z, f + kKeyOut * kChunk, block);
    dot_rows<P>(sums.y, memory + P::kQuery, block, quarter, dots);
    reads[0] += dots[0], reads[1] += dots[1];
    dot_rows<P>(sums.x, memory + P::kKey, block, quarter, dots);
    reads[0] -= f[kBeta * kChunk + token] * dots[0], reads[1] -= f[kBeta * kChunk + token + 8] * dots[1];
    dot_rows<P>(sums.z, memory + P::kKey, block, quarter, dots);
    writes[0] += dots[0], writes[1] += dots[1];
    add_squares<P>(sums, start, block, quarter);
    dot_rows<P>(sums.x, memory + P::kKey, block, quarter, dots);
    beta_keys[0] += dots[0], beta_keys[1] += dots[1];
    store_rows<P>(sums, f, params, chunk, row, key, block, quarter);
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (threadIdx.x % 4) continue;
    out.of(kReads, quarter, token + 8 * half) = reads[half];
    out.of(kWrites, quarter, token + 8 * half) = writes[half];
    out.of(kBetaKeys, quarter, token + 8 * half) = beta_keys[half];
  }
#pragma unroll
  for (int offset = 1; offset < 8; offset *= 2) values += __shfl_xor_sync(0xffffffffu, values, offset);
  if (threadIdx.x % 8 == 0) out.of(kValues, 0, threadIdx.x / 8) = values;
  states = device::warp_sum(states);
  if (threadIdx.x % 32 == 0) out.of(kStates, 0, warp) = states;
  __syncthreads();
  store_gates<P>(params, chunk, row, memory);
}

template <int keys>
void launch_for(Context& ctx, const GradientParams& params) {
  const Problem& p = params.backward.problem;
  const cuda::LaunchConfig config{
      .grid = {static_cast<unsigned>(p.slots), static_cast<unsigned>(p.HV)}, .block = kThreads, .shared_bytes = Plan<keys>::kSharedBytes};
  cuda::launch(ctx.stream(), "gated_delta_rule_gradients", &gradient_kernel<Plan<keys>>, config, params);
}

}  // namespace

void launch_gradients(Context& ctx, const GradientParams& params) {
  if (params.backward.problem.K == 64) launch_for<64>(ctx, params);
  else launch_for<128>(ctx, params);
}

}  // namespace braid::delta_cuda
