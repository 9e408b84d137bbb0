// The gradients of q, k, beta and log_decay from both walks' states. All chunks in parallel; a block has a chunk and a value head.
//   Y = q_in ∘ (dO S^T) + E k,   X = in ∘ (dR S^T) + F k,   Z = out ∘ (U dS^T) + E^T q − (beta F)^T k
//   with E = lower part of scale (dO U^T) ∘ decay and F = strictly lower part of (dR U^T) ∘ decay, both over the norms |q_i| or |k_i| and |k_j|
//   E and −beta F are a bf16 and its rest each where keys repeat: the signs of their rows may alternate, whose sums are then d_q
//   d_q = |q| Y,   d_k = |k| (Z − beta X),   d_beta = (dR · U) / beta      (of normalised q and k)
// d_log_decay of token t: what crosses it. From states, q · Y and −beta k · X of tokens from t on, k · Z of those before t, total <S, dS>;
// from pairs j < t ≤ i, T_ij = (dO U^T)_ij P_ij − beta_i (dR U^T)_ij M_ij, whose sums over rows and over columns cancel exactly.
#include "cuda/device/reduce.h"
#include "cuda/kernels/gated_delta_rule/gradients.h"
#include "cuda/runtime/check.h"

namespace braid::delta_cuda {
namespace {

/// Sums over channels, tokens or V, each warp's in a place of its own so that they add up in a fixed order.
enum Sum : int { kReads, kWrites, kRows, kColumnsOf };
template <int parts>
struct Sums {
  static constexpr int kBetas = 3 * parts + 4, kStates = kBetas + 1, kNumRows = kStates + 1;  // rows that are no parts of others
  float* at;                                                                                  // [kNumRows][64]
  __device__ float& of(int kind, int part, int token) const { return at[(kind * parts + part) * kChunk + token]; }
  __device__ float& beta(int token) const { return at[kBetas * kChunk + token]; }
  __device__ float& state(int warp) const { return at[kStates * kChunk + warp]; }
  __device__ float all(int kind, int token) const {
    float sum = of(kind, 0, token);
#pragma unroll
    for (int part = 1; part < parts; ++part) sum += of(kind, part, token);
    return sum;
  }
};

/// Shared memory. After the stages: k, q [64, keys], the lower triangles of E and −beta F with their rests, factors and sums.
template <int keys, bool rests>
struct Layout : Shape<keys, rests> {
  using Out = Sums<Shape<keys, rests>::kParts>;
  static constexpr int kTile = kChunk * keys * 2, kKey = kStages * Shape<keys, rests>::kStageBytes, kQuery = kKey + kTile;
  static constexpr int kE = kQuery + kTile, kF = kE + (rests ? 2 : 1) * kTriangleBytes;
  static constexpr int kFactors = kF + (rests ? 2 : 1) * kTriangleBytes, kSums = kFactors + kFactorBytes,
                       kSharedBytes = kSums + Out::kNumRows * kChunk * 4;
  static_assert(kSharedBytes <= (keys == 64 ? 113 : 227) * 1024);  // two blocks of 64 channels on a multiprocessor
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

/// E and −beta F to shared memory, and dR · U.
template <class L, bool rests>
__device__ inline void store_squares(const float (&d_p)[L::kOthers][4], const float (&d_m)[L::kOthers][4], unsigned char* memory,
                                     const Place& place) {
  const float* f = reinterpret_cast<const float*>(memory + L::kFactors);
  const typename L::Out out{reinterpret_cast<float*>(memory + L::kSums)};
#pragma unroll
  for (int n = 0; n < L::kOthers; ++n) {
    if (place.part * (L::kOthers / 2) + n / 2 > place.block) continue;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = place.token() + 8 * half, j = 8 * L::kOthers * place.part + 8 * n + 2 * (threadIdx.x % 4);
      float e[2], g[2];
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float decay = j + c <= i ? expf(f[kLogDecay * kChunk + i] - f[kLogDecay * kChunk + j + c]) * f[kKeyNorm * kChunk + j + c] : 0.0f;
        e[c] = d_p[n][2 * half + c] * decay * f[kQueryNorm * kChunk + i];
        g[c] = j + c < i ? d_m[n][2 * half + c] * decay * f[kKeyNorm * kChunk + i] : 0.0f;
        if (j + c == i) out.beta(i) = d_m[n][2 * half + c];
      }
      const float beta = f[kBeta * kChunk + i];
      const auto store = [&](int triangle, float one, float two) {
        unsigned char* at = memory + triangle + triangle_offset(i, j / 8 * 8) + j % 8 * 2;
        const uint32_t pair = device::pack_bf16(one, two);
        *reinterpret_cast<uint32_t*>(at) = pair;
        if constexpr (rests) *reinterpret_cast<uint32_t*>(at + kTriangleBytes) = rest_of(pair, one, two);
      };
      store(L::kE, e[0], e[1]);
      store(L::kF, -beta * g[0], -beta * g[1]);
    }
  }
}

/// Element (row, column) and its neighbour of a triangle and its rest.
template <bool rests>
__device__ inline float2 triangle_pair(const unsigned char* triangle, int row, int column) {
  const unsigned char* at = triangle + triangle_offset(row, column / 8 * 8) + column % 8 * 2;
  const uint32_t pair = *reinterpret_cast<const uint32_t*>(at);
  if constexpr (!rests) return make_float2(device::low_bf16(pair), device::high_bf16(pair));
  const uint32_t rest = *reinterpret_cast<const uint32_t*>(at + kTriangleBytes);
  return make_float2(device::low_bf16(pair) + device::low_bf16(rest), device::high_bf16(pair) + device::high_bf16(rest));
}

/// T = E ∘ q k^T − beta F ∘ k k^T below the diagonal, summed over rows and over columns.
template <class L, bool rests>
__device__ inline void sum_pairs(const float (&qk)[L::kOthers][4], const float (&kk)[L::kOthers][4], unsigned char* memory, const Place& place) {
  const typename L::Out out{reinterpret_cast<float*>(memory + L::kSums)};
  const int lane = threadIdx.x % 32;
  float rows[2] = {};
#pragma unroll
  for (int n = 0; n < L::kOthers; ++n) {
    float columns[2] = {};
    const int j = 8 * L::kOthers * place.part + 8 * n + 2 * (lane % 4);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = place.token() + 8 * half;
      if (place.part * (L::kOthers / 2) + n / 2 > place.block) continue;
      const float2 e = triangle_pair<rests>(memory + L::kE, i, j), f = triangle_pair<rests>(memory + L::kF, i, j);
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
template <class Factor>
__device__ inline void scale_rows(float (&c)[kTiles][4], const Place& place, Factor&& factor) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float f = factor(place.token() + 8 * half);
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

/// The parts that stay within the chunk: y += E k, x −= beta F k, z += E^T q − (beta F)^T k.
template <class L, bool rests>
__device__ inline void add_squares(float (&y)[kTiles][4], float (&x)[kTiles][4], float (&z)[kTiles][4], uint32_t memory, const Place& place) {
  const uint32_t rows = memory + lane_offset<16, false>(), columns = memory + lane_offset<16, true>(), keys = channels_offset<L>(place);
#pragma unroll
  for (int l = 0; l < 4; ++l) {
    uint32_t e[4], f[4], k[kTiles / 2][4], q[4];
#pragma unroll
    for (int n = 0; n < kTiles; n += 2) device::ldmatrix_x4_transposed(k[n / 2], memory + L::kKey + block_at<L::kKeys>(keys, 16 * l, 8 * n));
    if (l <= place.block) {
      const uint32_t block = rows + triangle_block(place.block, l);
#pragma unroll
      for (int rest = 0; rest < (rests ? 2 : 1); ++rest) {
        device::ldmatrix_x4(e, block + L::kE + rest * kTriangleBytes);
        device::ldmatrix_x4(f, block + L::kF + rest * kTriangleBytes);
#pragma unroll
        for (int n = 0; n < kTiles; n += 2) {
          mma_two(y[n], y[n + 1], e, k[n / 2]);
          mma_two(x[n], x[n + 1], f, k[n / 2]);
        }
      }
    }
    if (l >= place.block) {
      const uint32_t block = columns + triangle_block(l, place.block);
      device::ldmatrix_x4_transposed(e, block + L::kE);
      device::ldmatrix_x4_transposed(f, block + L::kF);
#pragma unroll
      for (int n = 0; n < kTiles; n += 2) {
        device::ldmatrix_x4_transposed(q, memory + L::kQuery + block_at<L::kKeys>(keys, 16 * l, 8 * n));
        mma_two(z[n], z[n + 1], e, q);
        mma_two(z[n], z[n + 1], f, k[n / 2]);
      }
    }
  }
}

/// Rows of d_q and d_k of the warp's channels; x is −beta X.
template <class L>
__device__ inline void store_rows(const float (&y)[kTiles][4], const float (&x)[kTiles][4], const float (&z)[kTiles][4], const unsigned char* memory,
                                  const GradientParams& params, const Place& place, int key) {
  const Problem& p = params.backward.problem;
  const float* f = reinterpret_cast<const float*>(memory + L::kFactors);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int i = place.token() + 8 * half;
    const float q_length = p.scale / f[kQueryNorm * kChunk + i], k_length = wrote(f[kBeta * kChunk + i]) / f[kKeyNorm * kChunk + i];
    const int64_t at = (place.row + i * p.HV) * p.K + key + place.part * 32 + pair_column();
#pragma unroll
    for (int n = 0; n < kTiles; n += 2) {
      uint32_t d_q[2], d_k[2];
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        const int c = 2 * half;
        d_q[m] = device::pack_bf16(q_length * y[n + m][c], q_length * y[n + m][c + 1]);
        d_k[m] = device::pack_bf16(k_length * (z[n + m][c] + x[n + m][c]), k_length * (z[n + m][c + 1] + x[n + m][c + 1]));
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
  const typename L::Out sums{reinterpret_cast<float*>(memory + L::kSums)};
  const int i = threadIdx.x;
  const int64_t at = place.row + i * params.backward.problem.HV;
  if (params.d_beta && i < place.chunk.count) params.d_beta[at] = sums.beta(i) / f[kWrittenBeta * kChunk + i];
  if (!params.d_log_decay) return;
  float* from_here = &sums.of(kReads, 0, 0);  // where the first parts of what they are sums of lie
  float* before = &sums.of(kWrites, 0, 0);
  if (i < kChunk) {
    const float columns = sums.of(kColumnsOf, 0, i) + sums.of(kColumnsOf, 1, i) + sums.of(kColumnsOf, 2, i) + sums.of(kColumnsOf, 3, i);
    from_here[i] = sums.all(kReads, i) + sums.all(kRows, i) - columns;
    before[i] = sums.all(kWrites, i);
  }
  __syncthreads();
  if (i >= place.chunk.count) return;
  float states = 0, crossing = 0, writes = 0;
  for (int w = 0; w < L::kThreads / 32; ++w) states += sums.state(w);
#pragma unroll 8
  for (int l = kChunk - 1; l >= 0; --l) crossing += l >= i ? from_here[l] : 0.0f;
#pragma unroll 8
  for (int l = 0; l < kChunk; ++l) writes += l < i ? before[l] : 0.0f;
  params.d_log_decay[at] = crossing + writes + expf(f[kLogDecay * kChunk + kChunk - 1]) * states;
}

template <int keys, bool rests>
__device__ inline void compute_gradients(const GradientParams& params, const Place& place, unsigned char* memory) {
  using L = Layout<keys, rests>;
  constexpr int kKeys = keys, kThreads = L::kThreads;
  const Problem& p = params.backward.problem;
  const uint32_t start = device::shared_address(memory);
  const float* f = reinterpret_cast<const float*>(memory + L::kFactors);
  const typename L::Out out{reinterpret_cast<float*>(memory + L::kSums)};
  const int slices = static_cast<int>(p.V / kColumns), steps = slices * static_cast<int>(p.K / kKeys), warp = threadIdx.x / 32;
  const int others = rests ? 0 : p.repeats[place.lane];  // the other kernel's
  const StageShare<L> share(p, place);
  const auto load = [&](int step) {
    const int turn = step / slices, slice = turn % 2 ? slices - 1 - step % slices : step % slices;  // to and fro: L2 has what was read last
    if (step < steps) share.template load<rests>(params, slice * kColumns, turn * kKeys, start + step % kStages * L::kStageBytes);
    device::cp_async_commit();
  };
  const auto load_keys = [&](int key) {
    copy_rows<kKeys, kThreads>(start + L::kKey, p.k + place.key_row * p.K + key, p.H * p.K, place.chunk.count, threadIdx.x);
    copy_rows<kKeys, kThreads>(start + L::kQuery, p.q + place.key_row * p.K + key, p.H * p.K, place.chunk.count, threadIdx.x);
  };
  copy_bytes<kFactorBytes, kThreads>(start + L::kFactors, p.factors + place.lane * kNumFactors * kChunk, threadIdx.x);
  load_keys(0);
  load(0), load(1);
  if (others) return device::cp_async_wait<0>();
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
      add_stage<L, rests>(y, x, z, qk, kk, start + stage, place, key == 0);
      if (params.d_log_decay) states += dot_pieces(memory + stage + kState, memory + stage + L::kDState);
    }
    if (slices < 3) {  // the copies of k and q may still be under way
      device::cp_async_wait<0>();
      __syncthreads();
    }
    if (key == 0) {
      store_squares<L, rests>(qk, kk, memory, place);
      clear(qk), clear(kk);
      __syncthreads();
    }
    scale_rows(y, place, [&](int i) { return f[kQueryIn * kChunk + i]; });
    scale_rows(x, place, [&](int i) { return -f[kBeta * kChunk + i] * f[kKeyIn * kChunk + i]; });
    scale_rows(z, place, [&](int i) { return f[kKeyOut * kChunk + i]; });
    const auto add = [&](int kind, int half, float sum) {  // by one thread of four, to a place that is its own
      float& at = out.of(kind, place.part, place.token() + 8 * half);
      if (threadIdx.x % 4 == 0) at = key ? at + sum : sum;
    };
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      add(kReads, half, dot_row<keys>(y, memory + L::kQuery, place, half) + dot_row<keys>(x, memory + L::kKey, place, half));
      add(kWrites, half, dot_row<keys>(z, memory + L::kKey, place, half));
    }
    add_squares<L, rests>(y, x, z, start, place);
    store_rows<L>(y, x, z, memory, params, place, key);
    if (params.d_log_decay) add_keys<L>(qk, kk, start, place);
    if (key + kKeys == p.K) break;
    __syncthreads();
    load_keys(key + kKeys);  // joins the group of the third stage from here
  }
  sum_pairs<L, rests>(qk, kk, memory, place);
  states = device::warp_sum(states);
  if (threadIdx.x % 32 == 0) out.state(warp) = states;
  __syncthreads();
  store_gates<L>(params, place, memory);
}

template <int keys, bool rests>
__global__ void __launch_bounds__(4 * keys, 128 / keys) gradient_kernel(GradientParams params) {
  extern __shared__ __align__(128) unsigned char memory[];
  const Problem& p = params.backward.problem;
  each_chunk<rests>(p, [&](int64_t slot, int64_t j) {
    const Place place(p, slot, j);
    if (place.chunk.count > 0) compute_gradients<keys, rests>(params, place, memory);
  });
}

template <int keys>
void launch_for(Context& ctx, const GradientParams& params) {
  const Problem& p = params.backward.problem;
  cuda::LaunchConfig config{.grid = {static_cast<unsigned>(p.slots), static_cast<unsigned>(p.HV)},
                            .block = Layout<keys, false>::kThreads,
                            .shared_bytes = Layout<keys, false>::kSharedBytes};
  cuda::launch(ctx.stream(), "gated_delta_rule_gradients", &gradient_kernel<keys, false>, config, params);
  config.grid = kFewBlocks, config.shared_bytes = Layout<keys, true>::kSharedBytes;
  cuda::launch(ctx.stream(), "gated_delta_rule_gradients_of_repeats", &gradient_kernel<keys, true>, config, params);
}

}  // namespace

void launch_gradients(Context& ctx, const GradientParams& params) {
  if (params.backward.problem.K <= 128) launch_for<64>(ctx, params);
  else launch_for<128>(ctx, params);
}

}  // namespace braid::delta_cuda
