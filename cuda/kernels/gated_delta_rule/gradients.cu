// The gradients of q, k, beta and log_decay from both walks' states. All chunks in parallel; a block has a chunk and a value head.
//   Y = q_in ∘ (dO S^T) + E k,   X = in ∘ (dR S^T) + F k,   Z = out ∘ (U dS^T) + E^T q − (beta F)^T k
//   with E = lower part of scale (dO U^T) ∘ decay and F = strictly lower part of (dR U^T) ∘ decay, both over the norms |q_i| or |k_i| and |k_j|
//   d_q = |q| Y,   d_k = |k| (Z − beta X),   d_beta = (dR · U) / beta      (of normalised q and k)
// d_log_decay of token t: what crosses it. From states, q · Y and −beta k · X of tokens from t on, k · Z of those before t, total <S, dS>;
// from pairs j < t ≤ i, T_ij = (dO U^T)_ij P_ij − beta_i (dR U^T)_ij M_ij, whose sums over rows and over columns cancel exactly.
#include "cuda/device/reduce.h"
#include "cuda/kernels/gated_delta_rule/gradients.h"
#include "cuda/runtime/check.h"

namespace braid::delta_cuda {
namespace {

/// Sums over channels, tokens or V, each warp's in a place of its own so that they add up in a fixed order.
enum Sum : int { kReads, kWrites, kRows, kColumnsOf, kBetas, kStates, kNumSums };
struct Sums {
  float* at;  // [kNumSums][4][64]
  __device__ float& of(int kind, int part, int token) const { return at[(kind * 4 + part) * kChunk + token]; }
  template <int parts>
  __device__ float all(int kind, int token) const {
    float sum = of(kind, 0, token);
#pragma unroll
    for (int part = 1; part < parts; ++part) sum += of(kind, part, token);
    return sum;
  }
};

/// Shared memory. After the stages: k, q [64, keys], E, F, −beta F [64, 64], factors and sums.
template <int keys>
struct Layout : Shape<keys> {
  static constexpr int kTile = kChunk * keys * 2, kKey = kStages * Shape<keys>::kStageBytes, kQuery = kKey + kTile;
  static constexpr int kE = kQuery + kTile, kF = kE + kTileBytes, kBetaF = kF + kTileBytes;
  static constexpr int kFactors = kBetaF + kTileBytes, kSums = kFactors + kFactorBytes, kSharedBytes = kSums + kNumSums * 4 * kChunk * 4;
};

/// qk += q k^T, kk += k k^T over the channels in shared memory.
template <class L>
__device__ inline void add_keys(float (&qk)[L::kOthers][4], float (&kk)[L::kOthers][4], uint32_t memory, const Place& place) {
  constexpr int kKeys = L::kKeys;
  const uint32_t rows = lane_offset<kKeys, false>() + place.block * 16 * kKeys * 2;
  const uint32_t others = lane_offset<kKeys, true>() + place.part * (L::kOthers * 8) * kKeys * 2;
#pragma unroll
  for (int c = 0; c < kKeys; c += 16) {
    uint32_t q[4], k[4], b[4];
    device::ldmatrix_x4(q, memory + L::kQuery + block_at<kKeys>(rows, 0, c));
    device::ldmatrix_x4(k, memory + L::kKey + block_at<kKeys>(rows, 0, c));
#pragma unroll
    for (int n = 0; n < L::kOthers; n += 2) {
      if (place.part * (L::kOthers / 2) + n / 2 > place.block) continue;
      device::ldmatrix_x4(b, memory + L::kKey + block_at<kKeys>(others, 8 * n, c));
      mma_two(qk[n], qk[n + 1], q, b);
      mma_two(kk[n], kk[n + 1], k, b);
    }
  }
}

/// E, F and −beta F to shared memory, and dR · U.
template <class L>
__device__ inline void store_squares(const float (&d_p)[L::kOthers][4], const float (&d_m)[L::kOthers][4], unsigned char* memory,
                                     const Place& place) {
  const float* f = reinterpret_cast<const float*>(memory + L::kFactors);
  const Sums out{reinterpret_cast<float*>(memory + L::kSums)};
#pragma unroll
  for (int n = 0; n < L::kOthers; ++n) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = place.token() + 8 * half, j = 8 * L::kOthers * place.part + 8 * n + 2 * (threadIdx.x % 4);
      float e[2], g[2];
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float decay = j + c <= i ? expf(f[kLogDecay * kChunk + i] - f[kLogDecay * kChunk + j + c]) * f[kKeyNorm * kChunk + j + c] : 0.0f;
        e[c] = d_p[n][2 * half + c] * decay * f[kQueryNorm * kChunk + i];
        g[c] = j + c < i ? d_m[n][2 * half + c] * decay * f[kKeyNorm * kChunk + i] : 0.0f;
        if (j + c == i) out.of(kBetas, 0, i) = d_m[n][2 * half + c];
      }
      const float beta = f[kBeta * kChunk + i];
      const uint32_t at = tile_offset<kChunk>(i, j / 8 * 8) + j % 8 * 2;
      *reinterpret_cast<uint32_t*>(memory + L::kE + at) = device::pack_bf16(e[0], e[1]);
      *reinterpret_cast<uint32_t*>(memory + L::kF + at) = device::pack_bf16(g[0], g[1]);
      *reinterpret_cast<uint32_t*>(memory + L::kBetaF + at) = device::pack_bf16(-beta * g[0], -beta * g[1]);
    }
  }
}

/// T = E ∘ q k^T − beta F ∘ k k^T below the diagonal, summed over rows and over columns.
template <class L>
__device__ inline void sum_pairs(const float (&qk)[L::kOthers][4], const float (&kk)[L::kOthers][4], unsigned char* memory, const Place& place) {
  const Sums out{reinterpret_cast<float*>(memory + L::kSums)};
  const int lane = threadIdx.x % 32;
  float rows[2] = {};
#pragma unroll
  for (int n = 0; n < L::kOthers; ++n) {
    float columns[2] = {};
    const int j = 8 * L::kOthers * place.part + 8 * n + 2 * (lane % 4);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = place.token() + 8 * half;
      const float2 e = pair_of<kChunk>(memory + L::kE, i, j), f = pair_of<kChunk>(memory + L::kBetaF, i, j);
      const float one = j < i ? e.x * qk[n][2 * half] + f.x * kk[n][2 * half] : 0.0f;
      const float two = j + 1 < i ? e.y * qk[n][2 * half + 1] + f.y * kk[n][2 * half + 1] : 0.0f;
      rows[half] += one + two;
      columns[0] += one, columns[1] += two;
    }
#pragma unroll
    for (int c = 0; c < 2; ++c) {
#pragma unroll
      for (int offset = 4; offset < 32; offset *= 2) columns[c] += __shfl_xor_sync(0xffffffffu, columns[c], offset);
      if (lane < 4) out.of(kColumnsOf, place.block, j + c) = columns[c];
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float row = quad_sum(rows[half]);
    if (lane % 4 == 0) out.of(kRows, place.part, place.token() + 8 * half) = row;
  }
}

/// Rows of the sums times a factor of their token, and their products with the rows of a tile summed over the warp's channels.
__device__ inline void scale_rows(float (&c)[kTiles][4], const float* factor, const Place& place) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float f = factor[place.token() + 8 * half];
#pragma unroll
    for (int n = 0; n < kTiles; ++n) c[n][2 * half] *= f, c[n][2 * half + 1] *= f;
  }
}
template <int keys>
__device__ inline float dot_row(const float (&c)[kTiles][4], const unsigned char* tile, const Place& place, int half) {
  float dot = 0;
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    const float2 x = pair_of<keys>(tile, place.token() + 8 * half, 32 * place.part + 8 * n + 2 * (threadIdx.x % 4));
    dot += c[n][2 * half] * x.x + c[n][2 * half + 1] * x.y;
  }
  return quad_sum(dot);
}

/// The parts that stay within the chunk: y += E k, x += F k, z += E^T q − (beta F)^T k.
template <class L>
__device__ inline void add_squares(float (&y)[kTiles][4], float (&x)[kTiles][4], float (&z)[kTiles][4], uint32_t memory, const Place& place) {
  const uint32_t rows = lane_offset<kChunk, false>() + place.block * 16 * kChunk * 2, columns = lane_offset<kChunk, true>() ^ (place.block * 32);
  const uint32_t keys = channels_offset<L>(place);
#pragma unroll
  for (int l = 0; l < 4; ++l) {
    uint32_t e[4], f[4], k[kTiles / 2][4], q[4];
#pragma unroll
    for (int n = 0; n < kTiles; n += 2) device::ldmatrix_x4_transposed(k[n / 2], memory + L::kKey + block_at<L::kKeys>(keys, 16 * l, 8 * n));
    if (l <= place.block) {
      device::ldmatrix_x4(e, memory + L::kE + block_at<kChunk>(rows, 0, 16 * l));
      device::ldmatrix_x4(f, memory + L::kF + block_at<kChunk>(rows, 0, 16 * l));
#pragma unroll
      for (int n = 0; n < kTiles; n += 2) {
        mma_two(y[n], y[n + 1], e, k[n / 2]);
        mma_two(x[n], x[n + 1], f, k[n / 2]);
      }
    }
    if (l >= place.block) {
      device::ldmatrix_x4_transposed(e, memory + L::kE + columns + 16 * l * kChunk * 2);
      device::ldmatrix_x4_transposed(f, memory + L::kBetaF + columns + 16 * l * kChunk * 2);
#pragma unroll
      for (int n = 0; n < kTiles; n += 2) {
        device::ldmatrix_x4_transposed(q, memory + L::kQuery + block_at<L::kKeys>(keys, 16 * l, 8 * n));
        mma_two(z[n], z[n + 1], e, q);
        mma_two(z[n], z[n + 1], f, k[n / 2]);
      }
    }
  }
}

/// Rows of d_q and d_k of the warp's channels.
template <class L>
__device__ inline void store_rows(const float (&y)[kTiles][4], const float (&x)[kTiles][4], const float (&z)[kTiles][4], const unsigned char* memory,
                                  const GradientParams& params, const Place& place, int key) {
  const Problem& p = params.backward.problem;
  const float* f = reinterpret_cast<const float*>(memory + L::kFactors);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int i = place.token() + 8 * half;
    const float beta = f[kBeta * kChunk + i], q_length = p.scale / f[kQueryNorm * kChunk + i], k_length = wrote(beta) / f[kKeyNorm * kChunk + i];
    const int64_t at = (place.row + i * p.HV) * p.K + key + place.part * 32 + pair_column();
#pragma unroll
    for (int n = 0; n < kTiles; n += 2) {
      uint32_t d_q[2], d_k[2];
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        const int c = 2 * half;
        d_q[m] = device::pack_bf16(q_length * y[n + m][c], q_length * y[n + m][c + 1]);
        d_k[m] = device::pack_bf16(k_length * (z[n + m][c] - beta * x[n + m][c]), k_length * (z[n + m][c + 1] - beta * x[n + m][c + 1]));
      }
      const uint2 q = paired(d_q[0], d_q[1]), k = paired(d_k[0], d_k[1]);
      if (i >= place.chunk.count) continue;
      if (params.d_q) *reinterpret_cast<uint2*>(params.d_q + at + 8 * n) = q;
      if (params.d_k) *reinterpret_cast<uint2*>(params.d_k + at + 8 * n) = k;
    }
  }
}

/// d_beta and d_log_decay from the sums.
template <class L>
__device__ inline void store_gates(const GradientParams& params, const Place& place, unsigned char* memory) {
  const float* f = reinterpret_cast<const float*>(memory + L::kFactors);
  const Sums sums{reinterpret_cast<float*>(memory + L::kSums)};
  const int i = threadIdx.x;
  const int64_t at = place.row + i * params.backward.problem.HV;
  if (params.d_beta && i < place.chunk.count) params.d_beta[at] = sums.of(kBetas, 0, i) / f[kWrittenBeta * kChunk + i];
  if (!params.d_log_decay) return;
  float* from_here = &sums.of(kBetas, 1, 0);
  float* before = &sums.of(kBetas, 2, 0);
  if (i < kChunk) {
    const float columns = sums.of(kColumnsOf, 0, i) + sums.of(kColumnsOf, 1, i) + sums.of(kColumnsOf, 2, i) + sums.of(kColumnsOf, 3, i);
    from_here[i] = sums.all<L::kParts>(kReads, i) + sums.all<L::kParts>(kRows, i) - columns;
    before[i] = sums.all<L::kParts>(kWrites, i);
  }
  __syncthreads();
  if (i >= place.chunk.count) return;
  float states = 0, crossing = 0, writes = 0;
  for (int w = 0; w < L::kThreads / 32; ++w) states += sums.of(kStates, 0, w);
#pragma unroll 8
  for (int l = kChunk - 1; l >= 0; --l) crossing += l >= i ? from_here[l] : 0.0f;
#pragma unroll 8
  for (int l = 0; l < kChunk; ++l) writes += l < i ? before[l] : 0.0f;
  params.d_log_decay[at] = crossing + writes + expf(f[kLogDecay * kChunk + kChunk - 1]) * states;
}

template <int keys>
__global__ void __launch_bounds__(4 * keys, 128 / keys) gradient_kernel(GradientParams params) {
  using L = Layout<keys>;
  constexpr int kKeys = keys, kThreads = L::kThreads;
  extern __shared__ __align__(128) unsigned char memory[];
  const Problem& p = params.backward.problem;
  const Place place(p, blockIdx.x, blockIdx.y);
  if (place.chunk.count == 0) return;
  const uint32_t start = device::shared_address(memory);
  const float* f = reinterpret_cast<const float*>(memory + L::kFactors);
  const Sums out{reinterpret_cast<float*>(memory + L::kSums)};
  const int slices = static_cast<int>(p.V / kColumns), steps = slices * static_cast<int>(p.K / kKeys), warp = threadIdx.x / 32;
  const StageShare<L> share(p, place);
  const auto load = [&](int step) {
    const int turn = step / slices, slice = turn % 2 ? slices - 1 - step % slices : step % slices;  // to and fro: L2 has what was read last
    if (step < steps) share.load(params, slice * kColumns, turn * kKeys, start + step % kStages * L::kStageBytes);
    device::cp_async_commit();
  };
  const auto load_keys = [&](int key) {
    copy_rows<kKeys, kThreads>(start + L::kKey, p.k + place.key_row * p.K + key, p.H * p.K, place.chunk.count, threadIdx.x);
    copy_rows<kKeys, kThreads>(start + L::kQuery, p.q + place.key_row * p.K + key, p.H * p.K, place.chunk.count, threadIdx.x);
  };
  copy_bytes<kFactorBytes, kThreads>(start + L::kFactors, p.factors + place.lane * kNumFactors * kChunk, threadIdx.x);
  load_keys(0);
  load(0), load(1);
  float qk[L::kOthers][4], kk[L::kOthers][4], states = 0;
  clear(qk), clear(kk);  // first d_p and d_m, then q k^T and k k^T
  for (int key = 0, step = 0; key < p.K; key += kKeys) {
    float y[kTiles][4], x[kTiles][4], z[kTiles][4];
    clear(y), clear(x), clear(z);
    for (int slice = 0; slice < slices; ++slice, ++step) {
      device::cp_async_wait<1>();
      __syncthreads();
      load(step + 2);
      const int stage = step % kStages * L::kStageBytes;
      add_stage<L>(y, x, z, qk, kk, start + stage, place, key == 0);
      if (params.d_log_decay) states += dot_pieces(memory + stage + kState, memory + stage + L::kDState);
    }
    if (slices < 3) {  // the copies of k and q may still be under way
      device::cp_async_wait<0>();
      __syncthreads();
    }
    if (key == 0) {
      store_squares<L>(qk, kk, memory, place);
      clear(qk), clear(kk);
      __syncthreads();
    }
    scale_rows(y, f + kQueryIn * kChunk, place);
    scale_rows(x, f + kKeyIn * kChunk, place);
    scale_rows(z, f + kKeyOut * kChunk, place);
    const auto add = [&](int kind, int half, float sum) {  // by one thread of four, to a place that is its own
      float& at = out.of(kind, place.part, place.token() + 8 * half);
      if (threadIdx.x % 4 == 0) at = key ? at + sum : sum;
    };
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float beta = f[kBeta * kChunk + place.token() + 8 * half];
      add(kReads, half, dot_row<keys>(y, memory + L::kQuery, place, half) - beta * dot_row<keys>(x, memory + L::kKey, place, half));
      add(kWrites, half, dot_row<keys>(z, memory + L::kKey, place, half));
    }
    add_squares<L>(y, x, z, start, place);
    store_rows<L>(y, x, z, memory, params, place, key);
    if (params.d_log_decay) add_keys<L>(qk, kk, start, place);
    if (key + kKeys == p.K) break;
    __syncthreads();
    load_keys(key + kKeys);  // joins the group of the third stage from here
  }
  sum_pairs<L>(qk, kk, memory, place);
  states = device::warp_sum(states);
  if (threadIdx.x % 32 == 0) out.of(kStates, 0, warp) = states;
  __syncthreads();
  store_gates<L>(params, place, memory);
}

template <int keys>
void launch_for(Context& ctx, const GradientParams& params) {
  const Problem& p = params.backward.problem;
  const cuda::LaunchConfig config{.grid = {static_cast<unsigned>(p.slots), static_cast<unsigned>(p.HV)},
                                  .block = Layout<keys>::kThreads,
                                  .shared_bytes = Layout<keys>::kSharedBytes};
  cuda::launch(ctx.stream(), "gated_delta_rule_gradients", &gradient_kernel<keys>, config, params);
}

}  // namespace

void launch_gradients(Context& ctx, const GradientParams& params) {
  if (params.backward.problem.K <= 128) launch_for<64>(ctx, params);
  else launch_for<128>(ctx, params);
}

}  // namespace braid::delta_cuda
