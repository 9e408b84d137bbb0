// The gradients of q, k and decays per key channel of each chunk, one block a chunk and head: what the walks found across chunks, and the
// pairs of the chunk's own tokens, by level as in prepare_channel.cu.
//
// With P_ts = scale d_o_t · v_s, and M the symmetric matrix of its values off the diagonal, one product a level serves q and k: of what
// both decay to the middle of their block, times M, d_q_t takes its first decay's share in upper halves, d_k_t its second's in lower ones.
// A warp owns a band of 16 tokens, and of it 16 channels at a time, channels as rows: a lane's operands, sums and decays are of the same
// elements, so the levels below 16 pass through no memory.
// d_log_decay_t sums over all pairs s < t' with s < t ≤ t': those across chunks without any subtraction; those of this chunk as a sum over
// tokens from t on of ±scaled product, in which pairs beyond t cancel exactly but for float32: both their terms are the same number.
#include "cuda/kernels/gated_linear_attention/finish.h"

namespace braid::gla_cuda {
namespace {

constexpr int kBands = 4, kHalves = 2;
constexpr int kBlock = 16;  // channels at once

constexpr int kDecayStride = 68;  // of float32 decays: those that a warp takes at once lie in different banks

template <class T>
struct FinishShared {
  static constexpr bool kFloatDecay = sizeof(T) == 4;
  char mixed[8192];                                  // M
  char tiles[2][kFloatDecay ? 4 : 5][8192];          // by turns, of 64 channels: q, k, across_q, across_k, log decays; before: slices of d_o and v
  float decays[kFloatDecay ? 64 : 1][kDecayStride];  // of 64 channels
  uint4 keys[kBands][kHalves][32], queries[kBands][kHalves][32];  // decayed to the end and from the start of their band
  float totals[kBands][kHalves][kBlock];                          // decays of whole bands
  float from[kBands][kHalves][kBlock], up_to[kBands][kHalves][kBlock];
  float diagonal[64];
};

using Values = float[2][2][2];  // [channel, + 8][token pair, + 8][parity]
using Operand = uint32_t[4];    // the same as a left operand: word [channel + 2 · pair]
using Sums = float[2][4];       // as products give them: [pair][2 · channel + parity]

template <class Body>
__device__ inline void each_value(Body&& body) {
#pragma unroll
  for (int u = 0; u < 2; ++u)
#pragma unroll
    for (int v = 0; v < 2; ++v)
#pragma unroll
      for (int e = 0; e < 2; ++e) body(u, v, e);
}
__device__ inline float value_of(const Operand& words, int u, int v, int e) {
  return e ? device::high_bf16(words[u + 2 * v]) : device::low_bf16(words[u + 2 * v]);
}

/// M of a band with itself, by level; negative where the token is of a lower half and takes from q.
struct OwnPairs {
  uint32_t one[2], two[2], four[2], eight[2];

  __device__ OwnPairs(uint32_t block_address) {
    uint32_t m[4];
    device::ldmatrix_x4(m, block_address);
    const int row = threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2, apart = row ^ column;
    const auto sign = [&](int level) { return row & level ? 0u : 0x80008000u; };
#pragma unroll
    for (int v = 0; v < 2; ++v) {
      one[v] = apart & 6 ? 0 : (m[3 * v] ^ sign(1)) & (row & 1 ? 0xffffu : 0xffff0000u);
      two[v] = (apart & 6) == 2 ? m[3 * v] ^ sign(2) : 0;
      four[v] = apart & 4 ? m[3 * v] ^ sign(4) : 0;
    }
    eight[0] = m[1] ^ 0x80008000u, eight[1] = m[2];
  }
};

/// What 16 channels of a band gather; `lost` is -d_k until the end. first, second: each token's decays in the blocks joined so far.
struct Gathered {
  Operand q, k;
  Values first, second, d_q, lost, from;
  float total[2][2];

  /// From the decays: levels 1 to 8.
  __device__ void add_band(const OwnPairs& pairs, const Values& decay) {
    add_one(pairs.one, decay);
    const int lane = threadIdx.x % 4;
    add_near<1>(pairs.two, lane & 1);
    add_near<2>(pairs.four, lane & 2);
    add_eight(pairs.eight);
  }
  __device__ void add_one(const uint32_t (&m)[2], const Values& decay) {
    Operand scaled;
    Sums product = {};
#pragma unroll
    for (int w = 0; w < 4; ++w) scaled[w] = device::pack_bf16(device::low_bf16(k[w]), device::high_bf16(q[w]) * decay[w % 2][w / 2][1]);
    device::mma_bf16(product[0], scaled, {m[0], 0});
    device::mma_bf16(product[1], scaled, {0, m[1]});
#pragma unroll
    for (int u = 0; u < 2; ++u)
#pragma unroll
      for (int v = 0; v < 2; ++v) {
        const float left = product[v][2 * u], right = product[v][2 * u + 1], even = decay[u][v][0], odd = decay[u][v][1];
        d_q[u][v][0] = 0, d_q[u][v][1] = odd * right;
        lost[u][v][0] = left, lost[u][v][1] = 0;
        from[u][v][0] = value_of(scaled, u, v, 0) * left, from[u][v][1] = value_of(scaled, u, v, 1) * right;
        total[u][v] = even * odd;
        first[u][v][0] = even, first[u][v][1] = total[u][v];
        second[u][v][0] = odd, second[u][v][1] = 1;
      }
  }
  /// Of blocks that lie in neighbouring lanes.
  template <int lanes>
  __device__ void add_near(const uint32_t (&m)[2], bool upper) {
    Operand scaled;
    Values factor;
    Sums product = {};
    each_value([&](int u, int v, int e) { factor[u][v][e] = upper ? first[u][v][e] : second[u][v][e]; });
#pragma unroll
    for (int w = 0; w < 4; ++w) scaled[w] = scaled_word(upper ? q[w] : k[w], {factor[w % 2][w / 2][0], factor[w % 2][w / 2][1]});
    device::mma_bf16(product[0], scaled, {m[0], 0});
    device::mma_bf16(product[1], scaled, {0, m[1]});
    each_value([&](int u, int v, int e) {
      const float x = product[v][2 * u + e];
      from[u][v][e] += value_of(scaled, u, v, e) * x;
      if (upper) d_q[u][v][e] += factor[u][v][e] * x;
      else lost[u][v][e] += factor[u][v][e] * x;
    });
#pragma unroll
    for (int u = 0; u < 2; ++u)
#pragma unroll
      for (int v = 0; v < 2; ++v) {
        const float other = __shfl_xor_sync(0xffffffffu, total[u][v], lanes);
        if (upper) first[u][v][0] *= other, first[u][v][1] *= other;
        else second[u][v][0] *= other, second[u][v][1] *= other;
        total[u][v] *= other;
      }
  }
  __device__ void add_eight(const uint32_t (&m)[2]) {
    Operand scaled;
    Sums product = {};
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      scaled[u] = scaled_word(k[u], {second[u][0][0], second[u][0][1]});
      scaled[u + 2] = scaled_word(q[u + 2], {first[u][1][0], first[u][1][1]});
    }
    device::mma_bf16(product[0], scaled, {0, m[0]});
    device::mma_bf16(product[1], scaled, {m[1], 0});
    each_value([&](int u, int v, int e) {
      const float x = product[v][2 * u + e];
      from[u][v][e] += value_of(scaled, u, v, e) * x;
      if (v) d_q[u][v][e] += first[u][v][e] * x, first[u][v][e] *= total[u][0];
      else lost[u][v][e] += second[u][v][e] * x, second[u][v][e] *= total[u][1];
    });
    total[0][0] *= total[0][1], total[1][0] *= total[1][1];
  }
};

/// Where a warp is: its tokens and, in a slice of 64 channels, its half of them.
struct Spot {
  const int lane = threadIdx.x % 32, band = threadIdx.x / 32 % kBands, half = threadIdx.x / 128, row = lane / 4, column = lane % 4 * 2;

  __device__ int token(int v) const { return 16 * band + 8 * v + column; }
};

/// Adds the pairs with tokens of other bands and what the walks found; up_to: what d_log_decay sums up to a token.
template <class Shared>
__device__ inline void add_bands(const Shared& shared, const Spot& spot, const Operand& q_scaled, const Operand& k_scaled, const Operand& across_q,
                                 const Operand& across_k, float scale, Gathered& gathered, Values& up_to) {
  const BlockAddress mixed(device::shared_address(shared.mixed), false);
  Sums to_q, to_k = {};
  float to_end[2] = {1, 1};
  each_value([&](int u, int v, int e) { to_q[v][2 * u + e] = scale * value_of(across_q, u, v, e); });
  const auto meet = [&](int other, const uint4& words, Sums& sums, float(&decayed)[2]) {
    Operand m;
    device::ldmatrix_x4(m, mixed.at(spot.band, other));
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      const float total = shared.totals[other][spot.half][spot.row + 8 * u];
      decayed[u] *= total;
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[i / 2][2 * u + i % 2] *= total;
    }
    const Operand a = {words.x, words.y, words.z, words.w};
    device::mma_bf16(sums[0], a, {m[0], m[1]});
    device::mma_bf16(sums[1], a, {m[2], m[3]});
  };
  float from_start[2] = {1, 1};
#pragma unroll 1
  for (int other = 0; other < spot.band; ++other) meet(other, shared.keys[other][spot.half][spot.lane], to_q, from_start);
#pragma unroll 1
  for (int other = kBands - 1; other > spot.band; --other) meet(other, shared.queries[other][spot.half][spot.lane], to_k, to_end);
  each_value([&](int u, int v, int e) {
    const float x = to_q[v][2 * u + e], y = to_k[v][2 * u + e], far = to_end[u] * value_of(across_k, u, v, e), second = gathered.second[u][v][e];
    gathered.d_q[u][v][e] += gathered.first[u][v][e] * x;
    gathered.lost[u][v][e] -= second * (y + far);
    gathered.from[u][v][e] += value_of(q_scaled, u, v, e) * x - value_of(k_scaled, u, v, e) * y;
    up_to[u][v][e] = value_of(gathered.k, u, v, e) * (second * far);
  });
}

/// Turns `from` into its sum over a band's tokens from each on, plus that of `up_to` over those before it; returns the sums over all.
__device__ inline void scan_band(Values& from, const Values& up_to, float (&from_all)[2], float (&up_to_all)[2]) {
  const int lane = threadIdx.x % 4;
#pragma unroll
  for (int u = 0; u < 2; ++u) {
    float right[2], left[2];
#pragma unroll
    for (int v = 0; v < 2; ++v) {
      float others = 0;
      const float own = from[u][v][0] + from[u][v][1];
      right[v] = own, left[v] = up_to[u][v][0] + up_to[u][v][1];
#pragma unroll
      for (int i = 1; i < 4; i *= 2) {
        const float other_right = __shfl_xor_sync(0xffffffffu, right[v], i), other_left = __shfl_xor_sync(0xffffffffu, left[v], i);
        others += lane & i ? other_left : other_right;
        right[v] += other_right, left[v] += other_left;
      }
      from[u][v][0] = others + own, from[u][v][1] += others + up_to[u][v][0];
    }
#pragma unroll
    for (int e = 0; e < 2; ++e) from[u][0][e] += right[1], from[u][1][e] += left[0];
    from_all[u] = right[0] + right[1], up_to_all[u] = left[0] + left[1];
  }
}

/// Puts a warp's 16 channels of a band into a tile, from words of two tokens each; `at`: the byte of the lane's first word.
template <class Word>
__device__ inline void put_words(char* tile, int at, Word&& word) {
#pragma unroll
  for (int w = 0; w < 4; ++w) *reinterpret_cast<uint32_t*>(tile + (at ^ (w % 2 << 4)) + w / 2 * 1024) = device::transposed_8x8(word(w % 2, w / 2));
}
__device__ inline void put_block(char* tile, int at, const Values& x) {
  put_words(tile, at, [&](int u, int v) { return device::pack_bf16(x[u][v][0], x[u][v][1]); });
}
/// The upper and the lower halves of float32 values into a tile each.
__device__ inline void put_halves(char* upper, char* lower, int at, const Values& x) {
  put_words(upper, at, [&](int u, int v) { return __byte_perm(__float_as_uint(x[u][v][0]), __float_as_uint(x[u][v][1]), 0x7632); });
  put_words(lower, at, [&](int u, int v) { return __byte_perm(__float_as_uint(x[u][v][0]), __float_as_uint(x[u][v][1]), 0x5410); });
}

/// Writes a warp's 32 channels of a band.
__device__ inline void store_band(const char* tile, const Spot& spot, device::bf16* to, int64_t stride, int count) {
  const int piece = 4 * spot.half + spot.lane % 4;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int t = 16 * spot.band + spot.row + 8 * i;
    if (t < count) *reinterpret_cast<uint4*>(to + t * stride + 8 * piece) = *reinterpret_cast<const uint4*>(tile + tile_byte(t, piece));
  }
}

/// Likewise float32 values from their halves.
__device__ inline void store_band(const char* upper, const char* lower, const Spot& spot, float* to, int64_t stride, int count) {
  const int piece = 4 * spot.half + spot.lane % 4;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int t = 16 * spot.band + spot.row + 8 * i;
    if (t >= count) continue;
    const uint4 high = *reinterpret_cast<const uint4*>(upper + tile_byte(t, piece)),
                low = *reinterpret_cast<const uint4*>(lower + tile_byte(t, piece));
    const auto left = [](uint32_t l, uint32_t h) { return __byte_perm(l, h, 0x5410); };
    const auto right = [](uint32_t l, uint32_t h) { return __byte_perm(l, h, 0x7632); };
    uint4* const at = reinterpret_cast<uint4*>(to + t * stride + 8 * piece);
    at[0] = {left(low.x, high.x), right(low.x, high.x), left(low.y, high.y), right(low.y, high.y)};
    at[1] = {left(low.z, high.z), right(low.z, high.z), left(low.w, high.w), right(low.w, high.w)};
  }
}

/// Keeps what is computed from x from being computed before the loop that needs it: there are no registers for that.
__device__ inline int fresh(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

/// One chunk and head.
template <class T>
struct Finish {
  static constexpr bool kFloatDecay = sizeof(T) == 4;
  using Shared = FinishShared<T>;
  const FinishParams& params;
  Shared& shared;
  const Piece& chunk;
  const int64_t h, stride, first;  // first: of the chunk's rows [H, K]
  const int count;
  const Spot spot;

  __device__ Finish(const FinishParams& params, Shared& shared, const Piece& chunk, int64_t h)
      : params(params),
        shared(shared),
        chunk(chunk),
        h(h),
        stride(params.problem.H * params.problem.K),
        first((chunk.first * params.problem.H + h) * params.problem.K),
        count(static_cast<int>(chunk.count)) {}

  /// Begins the copies of 64 channels: two rows a thread of each tile.
  __device__ void load(int64_t column, char (*tiles)[8192]) const {
    const Problem& p = params.problem;
    const int row = fresh(threadIdx.x / 8), piece = threadIdx.x % 8;
    const device::bf16* const from[5] = {static_cast<const device::bf16*>(p.q), static_cast<const device::bf16*>(p.k), params.across_q,
                                         params.across_k, static_cast<const device::bf16*>(p.log_decay)};
    const uint32_t to = device::shared_address(tiles[0]) + tile_byte(row, piece);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const bool live = row + 32 * i < count;
      const int64_t at = first + column + 8 * piece + (live ? row + 32 * i : 0) * stride;
#pragma unroll
      for (int j = 0; j < (kFloatDecay ? 4 : 5); ++j) device::cp_async16(to + 8192 * j + 4096 * i, from[j] + at, live);
    }
    device::cp_async_commit();
  }
  /// The same of float32 decays, for which there is one place.
  __device__ void load_float_decays(int64_t column) const {
    const int row = fresh(threadIdx.x / 16), piece = threadIdx.x % 16;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool live = row + 16 * i < count;
      const int64_t at = first + column + 4 * piece + (live ? row + 16 * i : 0) * stride;
      device::cp_async16(device::shared_address(&shared.decays[row + 16 * i][4 * piece]), static_cast<const float*>(params.problem.log_decay) + at,
                         live);
    }
    device::cp_async_commit();
  }

  __device__ void take_decays(uint32_t tile, int block, Values& decay) const {
    if constexpr (kFloatDecay) {
      each_value(
          [&](int u, int v, int e) { decay[u][v][e] = device::fast_exp(shared.decays[spot.token(v) + e][kBlock * block + spot.row + 8 * u]); });
    } else {
      Operand words;
      device::ldmatrix_x4_transposed(words, tile);
      each_value([&](int u, int v, int e) { decay[u][v][e] = device::fast_exp(value_of(words, u, v, e)); });
    }
  }

  /// d_log_decay of 16 channels, from `sums` over the band's tokens.
  __device__ void put_decays(char (*tiles)[8192], int at, Values& sums, const float (&spanning)[2]) const {
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      const int c = spot.row + 8 * u;
      float others = spanning[u];
#pragma unroll
      for (int b = 0; b < kBands - 1; ++b) others += b < spot.band ? shared.up_to[b][spot.half][c] : shared.from[b + 1][spot.half][c];
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[u][i / 2][i % 2] += others;
    }
    if constexpr (kFloatDecay) {
      put_halves(tiles[2], tiles[3], at, sums);  // across_q and across_k of these channels are used up
    } else {
      put_block(tiles[4], at, sums);
    }
  }

  /// 16 channels, of block `block` in the slice that begins at `slice`.
  __device__ void add_block(char (*tiles)[8192], int64_t slice, int block, const OwnPairs& pairs, const float (&diagonal)[2][2]) const {
    const int64_t column = slice + kBlock * block;
    const uint32_t operands = BlockAddress(device::shared_address(tiles[0]), false).at(spot.band, block);
    const int own = tile_byte(16 * spot.band + spot.row, 2 * block) + spot.lane % 4 * 4;
    Values decay, up_to;
    Gathered gathered;
    take_decays(operands + 4 * 8192, block, decay);
    device::ldmatrix_x4_transposed(gathered.q, operands);
    device::ldmatrix_x4_transposed(gathered.k, operands + 8192);
    gathered.add_band(pairs, decay);
    Operand q_scaled, k_scaled, across_q, across_k;
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const auto &first = gathered.first[w % 2][w / 2], &second = gathered.second[w % 2][w / 2];
      q_scaled[w] = scaled_word(gathered.q[w], {first[0], first[1]}), k_scaled[w] = scaled_word(gathered.k[w], {second[0], second[1]});
    }
    shared.queries[spot.band][spot.half][spot.lane] = {q_scaled[0], q_scaled[1], q_scaled[2], q_scaled[3]};
    shared.keys[spot.band][spot.half][spot.lane] = {k_scaled[0], k_scaled[1], k_scaled[2], k_scaled[3]};
    const auto share = [&](float(&to)[kBlock], float low, float high) {
      if (spot.lane % 4 == 0) to[spot.row] = low, to[spot.row + 8] = high;
    };
    share(shared.totals[spot.band][spot.half], gathered.total[0][0], gathered.total[1][0]);
    float spanning[2] = {};
    if (params.d_decay) {
      const int64_t at = (chunk.slot * params.problem.H + h) * params.problem.K + column + spot.row;
      spanning[0] = spanning_at(params, at), spanning[1] = spanning_at(params, at + 8);
    }
    __syncthreads();
    device::ldmatrix_x4_transposed(across_q, operands + 2 * 8192);
    device::ldmatrix_x4_transposed(across_k, operands + 3 * 8192);
    add_bands(shared, spot, q_scaled, k_scaled, across_q, across_k, params.problem.scale, gathered, up_to);
    each_value([&](int u, int v, int e) {
      gathered.d_q[u][v][e] += diagonal[v][e] * value_of(gathered.k, u, v, e);
      gathered.lost[u][v][e] = diagonal[v][e] * value_of(gathered.q, u, v, e) - gathered.lost[u][v][e];
    });
    put_block(tiles[0], own, gathered.d_q);
    put_block(tiles[1], own, gathered.lost);
    float from_all[2], up_to_all[2];
    scan_band(gathered.from, up_to, from_all, up_to_all);
    share(shared.from[spot.band][spot.half], from_all[0], from_all[1]);
    share(shared.up_to[spot.band][spot.half], up_to_all[0], up_to_all[1]);
    __syncthreads();
    if (params.d_decay) put_decays(tiles, own, gathered.from, spanning);
  }

  __device__ void run() const {
    load(0, shared.tiles[0]);
    if constexpr (kFloatDecay) load_float_decays(0);
    mix(params, chunk, h, shared.tiles[1], shared.mixed, shared.diagonal, [](int, int) { return 1.0f; });
    __syncthreads();
    const OwnPairs pairs(BlockAddress(device::shared_address(shared.mixed), false).at(spot.band, spot.band));
    float diagonal[2][2];
#pragma unroll
    for (int i = 0; i < 4; ++i) diagonal[i / 2][i % 2] = shared.diagonal[spot.token(i / 2) + i % 2];
#pragma unroll 1
    for (int64_t slice = 0; slice < params.problem.K; slice += kColumns) {
      char(*const tiles)[8192] = shared.tiles[slice / kColumns % 2];
      device::cp_async_wait<0>();
      __syncthreads();
      if (slice + kColumns < params.problem.K) load(slice + kColumns, shared.tiles[(slice / kColumns + 1) % 2]);
#pragma unroll 1
      for (int i = 0; i < 2; ++i) add_block(tiles, slice, 2 * spot.half + i, pairs, diagonal);
      if (kFloatDecay && slice + kColumns < params.problem.K) load_float_decays(slice + kColumns);  // all have taken the slice's
      __syncwarp();
      if (params.d_q) store_band(tiles[0], spot, params.d_q + first + slice, stride, count);
      if (params.d_k) store_band(tiles[1], spot, params.d_k + first + slice, stride, count);
      if (!params.d_decay) continue;
      if constexpr (kFloatDecay) store_band(tiles[2], tiles[3], spot, static_cast<float*>(params.d_decay) + first + slice, stride, count);
      else store_band(tiles[4], spot, static_cast<device::bf16*>(params.d_decay) + first + slice, stride, count);
    }
  }
};

template <class T>
__global__ void __launch_bounds__(device::kTileThreads, 2) finish_channel(FinishParams params) {
  extern __shared__ __align__(128) char finish_memory[];
  const Block block = block_of(params.problem.H);
  const Piece chunk = piece_of<kChunk>(params.chunks, block.slot);
  if (chunk.count == 0) return;
  Finish<T>(params, *reinterpret_cast<FinishShared<T>*>(finish_memory), chunk, block.h).run();
}

}  // namespace

template <class T>
void launch_finish_channel(Context& ctx, const FinishParams& params) {
  const cuda::LaunchConfig config{
      .grid = grid_of(params.chunks.slots, params.problem.H), .block = device::kTileThreads, .shared_bytes = sizeof(FinishShared<T>)};
  cuda::launch(ctx.stream(), "gated_linear_attention_finish", &finish_channel<T>, config, params);
}

void launch_finish_channel(Context& ctx, const FinishParams& params) {
  if (params.problem.decay_is_float) launch_finish_channel<float>(ctx, params);
  else launch_finish_channel<device::bf16>(ctx, params);
}

}  // namespace braid::gla_cuda
