// The gradients of q, k, beta and log_decay with a decay per channel, from both walks' states. All chunks in parallel; a block has a chunk and a
// value head. As in gradients.cu, of normalised q and k, with E = strictly lower part of dO U^T, F of dR U^T, and decays inside the sums over pairs:
//   d_q = scale (exp(G) ∘ (dO S^T) + Σ_{j<i} E_ij exp(G_i − G_j) k_j + (dO · U)_i k_i)
//   d_k = Z − beta X + scale (dO · U)_i q_i,   X = exp(G) ∘ (dR S^T) + Σ_{j<i} F_ij exp(G_i − G_j) k_j,   d_beta = (dR · U) / beta
//   Z = exp(G_end − G) ∘ (U dS^T) + Σ_{i>j} exp(G_i − G_j) (scale E_ij q_i − beta_i F_ij k_i)
// Sums over pairs go by levels (levels.h): with the rows of a level decayed to its middle,
//   one: scale q in upper halves, k in lower ones,   two: −beta k in upper halves, k in lower ones,
// (E + E^T) one and (F + F^T) two hold all of them. d_log_decay of token t, per channel, is what crosses it: tokens' own sums with the states, from t
// on or before it, total <S, dS>, and of pairs j < t ≤ i the rows' sums minus the columns': pairs on one side of t cancel exactly but for float32,
// because both of their terms are the same product of the same rounded numbers.
//
// Where keys repeat (`repeats`) signs of a row of E may alternate, and bf16 is too coarse for its sum: pairs are then products of half floats. A
// power of two each brings E, F, q, k and beta into their range; what is below 2^−36 beside the largest of a chunk counts as zero.
#include "cuda/device/reduce.h"
#include "cuda/kernels/gated_delta_rule/gradients.h"
#include "cuda/kernels/gated_delta_rule/levels.h"

namespace braid::delta_cuda {
namespace {

constexpr int kKeys = kLevelKeys, kThreads = device::kTileThreads;
constexpr float kRange = 100;  // of products of bf16, which have the exponents of float32
using Sizes = Shape<kKeys, true>;
static_assert(Sizes::kThreads == kThreads);

struct ChannelShared {
  struct Work {
    unsigned char scaled[2][2][kTileBytes];  // by turns: one, two
    LogSums sums;                            // G; then what d_log_decay sums over tokens from a token on
    LogSums key_sums;                        // what it sums over tokens before one
  };
  unsigned char e[kTileBytes], f[kTileBytes], q[kTileBytes], k[kTileBytes];
  union {
    unsigned char stages[kStages * Sizes::kStageBytes];
    Work work;
  };
  float factors[kNumFactors][kChunk];
  float diagonal[kChunk];      // dO · U
  float betas[kChunk];         // dR · U
  float spans[8][kLevelKeys];  // <S, dS> of each channel, by warp
  float totals[2 * kThreads];
  float largest[5][8];  // by kind and warp
  float powers[5];
};
static_assert(sizeof(ChannelShared) <= 113 * 1024);  // two blocks on a multiprocessor

/// The power of two that brings `largest` to about 2^12: half floats then have all their digits down to 2^−26 beside it.
__device__ inline float power_for(float largest) {
  const int exponent = largest > 0 ? max(min(ilogbf(largest), 100), -100) : 0;
  return ldexpf(1.0f, 12 - exponent);
}
/// What E, F, q, k and beta of a chunk are multiplied by; q and k of a slice of channels.
enum Power : int { kOfE, kOfF, kOfQuery, kOfKey, kOfBeta, kNumPowers };
__device__ inline void share_largest(ChannelShared& shared, Power kind, float largest) {
  largest = device::warp_max(largest);
  if (threadIdx.x % 32 == 0) shared.largest[kind][threadIdx.x / 32] = largest;
}
/// Ends with a barrier.
__device__ inline void find_powers(ChannelShared& shared, Power first, Power last) {
  __syncthreads();
  if (threadIdx.x >= first && threadIdx.x <= last) {
    float largest = shared.largest[threadIdx.x][0];
    for (int warp = 1; warp < 8; ++warp) largest = fmaxf(largest, shared.largest[threadIdx.x][warp]);
    shared.powers[threadIdx.x] = power_for(largest);
  }
  __syncthreads();
}

template <bool halves>
__device__ inline uint32_t pack(float low, float high) {
  return halves ? device::pack_f16(low, high) : device::pack_bf16(low, high);
}
/// A row's pair times a factor of the row and one of each channel.
template <bool halves>
__device__ inline uint32_t scaled_pair(float2 x, float row, float2 factor) {
  return halves ? scaled_halves(x, row, factor) : scaled(x, row, factor);
}
template <bool halves>
__device__ inline float2 unpack(uint32_t pair) {
  return halves ? halves_to_floats(pair) : to_floats(pair);
}

template <bool halves>
__device__ inline void multiply(float (&d0)[4], float (&d1)[4], const uint32_t (&a)[4], const uint32_t (&b)[4]) {
  if constexpr (halves) mma_two_f16(d0, d1, a, b);
  else mma_two(d0, d1, a, b);
}

/// E and F, zeros on and above the diagonal, and the diagonals.
template <bool halves>
__device__ inline void store_squares(ChannelShared& shared, const float (&d_p)[kTiles][4], const float (&d_m)[kTiles][4], const Place& place) {
  float largest_p = 0, largest_m = 0;
#pragma unroll
  for (int n = 0; n < kTiles; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool below = 32 * place.part + 8 * n + 2 * (threadIdx.x % 4) + i % 2 < place.token() + i / 2 * 8;
      largest_p = fmaxf(largest_p, below ? fabsf(d_p[n][i]) : 0.0f), largest_m = fmaxf(largest_m, below ? fabsf(d_m[n][i]) : 0.0f);
    }
  if constexpr (halves) {
    share_largest(shared, kOfE, largest_p), share_largest(shared, kOfF, largest_m);
    find_powers(shared, kOfE, kOfF);
  }
  const float of_p = halves ? shared.powers[kOfE] : 1.0f, of_m = halves ? shared.powers[kOfF] : 1.0f;
#pragma unroll
  for (int n = 0; n < kTiles; ++n)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int t = place.token() + 8 * half, s = 32 * place.part + 8 * n + 2 * (threadIdx.x % 4);
      const float *const p = &d_p[n][2 * half], *const m = &d_m[n][2 * half];
      const uint32_t at = tile_offset<kChunk>(t, s / 8 * 8) + s % 8 * 2;
      *reinterpret_cast<uint32_t*>(shared.e + at) = pack<halves>(s < t ? of_p * p[0] : 0.0f, s + 1 < t ? of_p * p[1] : 0.0f);
      *reinterpret_cast<uint32_t*>(shared.f + at) = pack<halves>(s < t ? of_m * m[0] : 0.0f, s + 1 < t ? of_m * m[1] : 0.0f);
      if (s == t) shared.diagonal[t] = p[0], shared.betas[t] = m[0];
      if (s + 1 == t) shared.diagonal[t] = p[1], shared.betas[t] = m[1];
    }
}

/// <S, dS> of eight channels of a row of a stage.
__device__ inline void add_span(float (&span)[8], const unsigned char* stage) {
  const uint32_t at = tile_offset<kKeys>(threadIdx.x / 8, threadIdx.x % 8 * 8);
  const uint4 x = *reinterpret_cast<const uint4*>(stage + kState + at), y = *reinterpret_cast<const uint4*>(stage + Sizes::kDState + at);
  const auto add = [&](int i, uint32_t s, uint32_t t) {
    span[i] += device::low_bf16(s) * device::low_bf16(t), span[i + 1] += device::high_bf16(s) * device::high_bf16(t);
  };
  add(0, x.x, y.x), add(2, x.y, y.y), add(4, x.z, y.z), add(6, x.w, y.w);
}
__device__ inline void store_span(ChannelShared& shared, float (&span)[8]) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    span[i] += __shfl_xor_sync(0xffffffffu, span[i], 8);
    span[i] += __shfl_xor_sync(0xffffffffu, span[i], 16);
    if (lane < 8) shared.spans[threadIdx.x / 32][8 * lane + i] = span[i];
  }
}

/// The A fragment (band, other) of E + E^T or F + F^T, `tile` a lower triangle.
__device__ inline void load_symmetric(uint32_t (&a)[4], uint32_t tile, int band, int other) {
  uint32_t mirrored[4];
  if (other <= band) device::ldmatrix_x4(a, tile + block_at<kChunk>(lane_offset<kChunk, false>(), 16 * band, 16 * other));
  if (other >= band) device::ldmatrix_x4_transposed(mirrored, tile + block_at<kChunk>(lane_offset<kChunk, true>(), 16 * other, 16 * band));
#pragma unroll
  for (int i = 0; i < 4; ++i) a[i] = other < band ? a[i] : other > band ? mirrored[i] : a[i] | mirrored[i];  // one of the two is zero
}

/// one += E tile, two += F tile over the pairs of a level, for this warp's 16 tokens and 32 channels.
template <bool halves>
__device__ inline void add_pairs(ChannelShared& shared, const unsigned char (&tiles)[2][kTileBytes], const TilePlace& spot, int level,
                                 float (&one)[kTiles][4], float (&two)[kTiles][4]) {
  const uint32_t first = device::shared_address(tiles[0]), columns = lane_offset<kKeys, false>() ^ (spot.half * 64);
  const int row = spot.lane / 4, column = spot.lane % 4 * 2, differing = (row ^ column) & 6;  // but for the lowest bit, that of two neighbours
  const uint32_t neighbours = differing ? 0u : row & 1 ? 0xffffu : 0xffff0000u;
  const uint32_t mask = level == 1 ? neighbours : (level == 4 ? differing & 4 : differing == 2) ? ~0u : 0u;
#pragma unroll 1
  for (int i = 0; i < (level == 32 ? 2 : 1); ++i) {
    const int other = level == 32 ? ((spot.band & 2) ^ 2) + i : level == 16 ? spot.band ^ 1 : spot.band;
    uint32_t a[2][4];
    load_symmetric(a[0], device::shared_address(shared.e), spot.band, other);
    load_symmetric(a[1], device::shared_address(shared.f), spot.band, other);
#pragma unroll
    for (auto& x : a) {
      if (level == 8) x[0] = x[3] = 0;
      if (level < 8) x[1] = x[2] = 0, x[0] &= mask, x[3] &= mask;
    }
#pragma unroll
    for (int n = 0; n < kTiles; n += 2) {
      uint32_t b[4];
      device::ldmatrix_x4_transposed(b, first + block_at<kKeys>(columns, 16 * other, 8 * n));
      multiply<halves>(one[n], one[n + 1], a[0], b);
      device::ldmatrix_x4_transposed(b, first + kTileBytes + block_at<kKeys>(columns, 16 * other, 8 * n));
      multiply<halves>(two[n], two[n + 1], a[1], b);
    }
  }
}

/// sum += T tile (or Tᵀ tile) for this warp's 16 tokens and 32 channels, over all pairs of the chunk or those of the band; T a lower triangle.
template <bool transposed>
__device__ inline void add_triangle(float (&sum)[kTiles][4], const unsigned char* triangle, const unsigned char* tile, const TilePlace& spot,
                                    bool whole) {
  const uint32_t from = device::shared_address(triangle), to = device::shared_address(tile), columns = lane_offset<kKeys, false>() ^ (spot.half * 64);
  const int first = transposed || !whole ? spot.band : 0, last = transposed && whole ? 3 : spot.band;
#pragma unroll 1
  for (int other = first; other <= last; ++other) {
    uint32_t a[4], b[4];
    if constexpr (transposed) device::ldmatrix_x4_transposed(a, from + block_at<kChunk>(lane_offset<kChunk, true>(), 16 * other, 16 * spot.band));
    else device::ldmatrix_x4(a, from + block_at<kChunk>(lane_offset<kChunk, false>(), 16 * spot.band, 16 * other));
#pragma unroll
    for (int n = 0; n < kTiles; n += 2) {
      device::ldmatrix_x4_transposed(b, to + block_at<kKeys>(columns, 16 * other, 8 * n));
      mma_two(sum[n], sum[n + 1], a, b);
    }
  }
}

/// The gradients of a thread's elements in one slice of 64 channels.
template <bool halves>
struct Gradients {
  float2 q[2][4], k[2][4], from[2][4];  // from: what d_log_decay sums over tokens from its own on

  /// From the states, y = dO S^T, x = dR S^T, z = U dS^T, and the diagonal.
  __device__ void begin(ChannelShared& shared, const TilePlace& spot, float scale, const float (&y)[kTiles][4], const float (&x)[kTiles][4],
                        const float (&z)[kTiles][4]) {
    auto& work = shared.work;
    float largest_q = 0, largest_k = 0;
    TilePlace::each([&](int i, int n) {
      const int t = spot.row(i), c = spot.column(n);
      const float2 sum = *reinterpret_cast<const float2*>(&work.sums[t][c]), all = *reinterpret_cast<const float2*>(&work.sums[kChunk - 1][c]);
      const float2 q_raw = to_floats(spot.word(shared.q, i, n)), k_raw = to_floats(spot.word(shared.k, i, n));
      const float beta = shared.factors[kBeta][t], q_norm = shared.factors[kQueryNorm][t], k_norm = shared.factors[kKeyNorm][t];
      const float diagonal = shared.diagonal[t];
      const auto element = [&](float log_in, float log_out, float q_at, float k_at, float y_at, float x_at, float z_at, float& to_q, float& to_k,
                               float& to_from, float& to_keys) {
        const float in = device::fast_exp2(log_in), scaled_q = q_norm * q_at, key = k_norm * k_at;  // q_norm holds scale
        largest_q = fmaxf(largest_q, fabsf(scaled_q)), largest_k = fmaxf(largest_k, fabsf(key));
        const float read = in * y_at, correction = in * x_at, write = device::fast_exp2(log_out) * z_at;
        to_q = scale * read + scale * diagonal * key;
        to_k = write - beta * correction + diagonal * scaled_q;
        to_from = scaled_q * read - beta * key * correction;
        to_keys = key * write;
      };
      float2 key_sum;
      element(sum.x, all.x - sum.x, q_raw.x, k_raw.x, y[n][2 * i], x[n][2 * i], z[n][2 * i], q[i][n].x, k[i][n].x, from[i][n].x, key_sum.x);
      element(sum.y, all.y - sum.y, q_raw.y, k_raw.y, y[n][2 * i + 1], x[n][2 * i + 1], z[n][2 * i + 1], q[i][n].y, k[i][n].y, from[i][n].y,
              key_sum.y);
      *reinterpret_cast<float2*>(&work.key_sums[t][c]) = key_sum;
    });
    if constexpr (halves) {
      share_largest(shared, kOfQuery, largest_q), share_largest(shared, kOfKey, largest_k);
      share_largest(shared, kOfBeta, fabsf(shared.factors[kBeta][threadIdx.x % kChunk]));
      find_powers(shared, kOfQuery, kOfBeta);
    }
  }

  __device__ void add_level(ChannelShared& shared, const TilePlace& spot, float scale, int level) {
    auto& tiles = shared.work.scaled[level & 0x15 ? 0 : 1];
    const auto power = [&](Power kind) { return halves ? shared.powers[kind] : 1.0f; };
    const float beta_power = halves ? 0x1p-12f * power(kOfBeta) : 1.0f;
    float2 factor[2][4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const FactorAt at(shared.work.sums, spot, i, level);
      const bool upper = spot.row(i) & level;
      const int t = spot.row(i);
      const float key = power(kOfKey) * shared.factors[kKeyNorm][t], query = power(kOfQuery) * shared.factors[kQueryNorm][t];
      const float negative = -beta_power * shared.factors[kBeta][t] * key;
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        factor[i][n] = at.factor(n);
        const float2 k_raw = to_floats(spot.word(shared.k, i, n)), first = upper ? to_floats(spot.word(shared.q, i, n)) : k_raw;
        spot.word(tiles[0], i, n) = scaled_pair<halves>(first, upper ? query : key, factor[i][n]);
        spot.word(tiles[1], i, n) = scaled_pair<halves>(k_raw, upper ? negative : key, factor[i][n]);
      }
    }
    __syncthreads();
    float one[kTiles][4] = {}, two[kTiles][4] = {};
    add_pairs<halves>(shared, tiles, spot, level, one, two);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const bool upper = spot.row(i) & level;
      const int t = spot.row(i);
      // Of the sums, `one` is of keys in upper halves and of queries in lower ones, `two` of keys and of −beta k.
      const float e = 1 / power(kOfE), f_key = 1 / (power(kOfF) * power(kOfKey)), key = 1 / power(kOfKey), query = 1 / power(kOfQuery);
      const float one_power = e * (upper ? key : query), two_power = upper ? f_key : f_key / beta_power;
      const float to_q = upper ? scale * one_power : 0.0f, of_one = upper ? 0.0f : one_power;
      const float of_two = upper ? -shared.factors[kBeta][t] * two_power : two_power, sign = upper ? 1.0f : -1.0f;
      const float sign_one = sign * e * query * key, sign_two = sign * f_key * key / beta_power;
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const float2 first = unpack<halves>(spot.word(tiles[0], i, n)), second = unpack<halves>(spot.word(tiles[1], i, n));
        const float2 f = factor[i][n];
        const float one_x = one[n][2 * i], one_y = one[n][2 * i + 1], two_x = two[n][2 * i], two_y = two[n][2 * i + 1];
        q[i][n].x += to_q * f.x * one_x, q[i][n].y += to_q * f.y * one_y;
        k[i][n].x += f.x * (of_one * one_x + of_two * two_x), k[i][n].y += f.y * (of_one * one_y + of_two * two_y);
        if constexpr (halves) {
          from[i][n].x += sign_one * (first.x * one_x) + sign_two * (second.x * two_x);
          from[i][n].y += sign_one * (first.y * one_y) + sign_two * (second.y * two_y);
        } else {
          from[i][n].x += sign * (first.x * one_x + second.x * two_x), from[i][n].y += sign * (first.y * one_y + second.y * two_y);
        }
      }
    }
  }

  /// The pairs of the whole chunk, or of its bands, at once. Begins and ends with a barrier.
  __device__ void add_square(ChannelShared& shared, const TilePlace& spot, float scale, bool whole) {
    auto& work = shared.work;
    unsigned char *const queries = work.scaled[0][0], *const late = work.scaled[0][1], *const early = work.scaled[1][0];
    __syncthreads();
    TilePlace::each([&](int i, int n) {
      const int t = spot.row(i);
      const float2 above = above_middle(work.sums, spot, i, n, whole);
      const float2 up = {device::fast_exp2(above.x), device::fast_exp2(above.y)}, down = {device::fast_exp2(-above.x), device::fast_exp2(-above.y)};
      const float2 k_raw = to_floats(spot.word(shared.k, i, n));
      const float key = shared.factors[kKeyNorm][t];
      spot.word(queries, i, n) = scaled(to_floats(spot.word(shared.q, i, n)), shared.factors[kQueryNorm][t], up);
      spot.word(late, i, n) = scaled(k_raw, -shared.factors[kBeta][t] * key, up);
      spot.word(early, i, n) = scaled(k_raw, key, down);
    });
    __syncthreads();
    // body(i, n, sums of the element's two channels)
    const auto visit = [&](const float(&sum)[kTiles][4], auto&& body) {
      TilePlace::each([&](int i, int n) { body(i, n, make_float2(sum[n][2 * i], sum[n][2 * i + 1])); });
    };
    // What a token does as the later one of a pair counts from it on, as the earlier one up to it.
    const auto count = [&](int i, int n, float sign, unsigned char* tile, const float2& x) {
      const float2 own = to_floats(spot.word(tile, i, n));
      from[i][n].x += sign * (own.x * x.x), from[i][n].y += sign * (own.y * x.y);
    };
    const auto factor = [&](int i, int n, float sign) {
      const float2 above = above_middle(work.sums, spot, i, n, whole);
      return make_float2(device::fast_exp2(sign * above.x), device::fast_exp2(sign * above.y));
    };
    {
      float of_keys[kTiles][4] = {};
      add_triangle<false>(of_keys, shared.e, early, spot, whole);
      visit(of_keys, [&](int i, int n, const float2& x) {
        const float2 up = factor(i, n, 1);
        q[i][n].x += scale * up.x * x.x, q[i][n].y += scale * up.y * x.y;
        count(i, n, 1, queries, x);
      });
    }
    {
      float of_keys[kTiles][4] = {};
      add_triangle<false>(of_keys, shared.f, early, spot, whole);
      visit(of_keys, [&](int i, int n, const float2& x) {
        const float2 up = factor(i, n, 1);
        const float negative = -shared.factors[kBeta][spot.row(i)];
        k[i][n].x += negative * up.x * x.x, k[i][n].y += negative * up.y * x.y;
        count(i, n, 1, late, x);
      });
    }
    {
      float of_later[kTiles][4] = {};
      add_triangle<true>(of_later, shared.e, queries, spot, whole);
      add_triangle<true>(of_later, shared.f, late, spot, whole);
      visit(of_later, [&](int i, int n, const float2& x) {
        const float2 down = factor(i, n, -1);
        k[i][n].x += down.x * x.x, k[i][n].y += down.y * x.y;
        count(i, n, -1, early, x);
      });
    }
    __syncthreads();
  }

  /// After the last level: q and k as bf16 into their tiles, `from` over the sums.
  __device__ void store(ChannelShared& shared, const TilePlace& spot) const {
    TilePlace::each([&](int i, int n) {
      const float one = wrote(shared.factors[kBeta][spot.row(i)]);
      spot.word(shared.q, i, n) = device::pack_bf16(q[i][n].x, q[i][n].y);
      spot.word(shared.k, i, n) = device::pack_bf16(one * k[i][n].x, one * k[i][n].y);
      *reinterpret_cast<float2*>(&shared.work.sums[spot.row(i)][spot.column(n)]) = from[i][n];
    });
  }
};

/// d_log_decay of a slice: a channel and 16 tokens a thread.
__device__ inline void store_decays(const GradientParams& params, const Place& place, int key, ChannelShared& shared) {
  const Problem& p = params.backward.problem;
  const int c = threadIdx.x % kLevelKeys, group = threadIdx.x / kLevelKeys;
  float from[16], from_all = 0, before_all = 0;
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    from[i] = shared.work.sums[16 * group + i][c];
    from_all += from[i], before_all += shared.work.key_sums[16 * group + i][c];
  }
  shared.totals[threadIdx.x] = from_all, shared.totals[kThreads + threadIdx.x] = before_all;
  __syncthreads();
  float before = 0, after = 0;
#pragma unroll
  for (int warp = 0; warp < 8; ++warp) before += shared.spans[warp][c];
  before *= (&shared.factors[0][0])[kTotals + key + c];
  for (int i = 0; i < group; ++i) before += shared.totals[kThreads + i * kLevelKeys + c];
  for (int i = 3; i > group; --i) after += shared.totals[i * kLevelKeys + c];
#pragma unroll
  for (int i = 15; i >= 0; --i) from[i] = after += from[i];
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    const int t = 16 * group + i;
    const int64_t at = (place.row + t * p.HV) * p.K + key + c;
    const float sum = before + from[i];
    if (t < place.chunk.count) {
      if (params.d_channel_decay_is_float) static_cast<float*>(params.d_channel_decay)[at] = sum;
      else static_cast<bf16*>(params.d_channel_decay)[at] = device::from_float<bf16>(sum);
    }
    before += shared.work.key_sums[t][c];
  }
}

template <bool repeats>
__device__ inline void compute_gradients(const GradientParams& params, const Place& place, ChannelShared& shared) {
  const Problem& p = params.backward.problem;
  const TilePlace spot;
  const int slices = static_cast<int>(p.V / kColumns);
  const uint32_t stages = device::shared_address(shared.stages);
  copy_bytes<kFactorBytes, kThreads>(device::shared_address(shared.factors), p.factors + place.lane * kNumFactors * kChunk, threadIdx.x);
  const int others = repeats ? 0 : p.repeats[place.lane];  // the other kernel's
  Gradients<repeats> gradients;
  const StageShare<Sizes> share(p, place);
  for (int key = 0; key < p.K; key += kKeys) {
    const auto load = [&](int slice) {
      if (slice < slices) share.template load<repeats>(params, slice * kColumns, key, stages + slice % kStages * Sizes::kStageBytes);
      device::cp_async_commit();
    };
    copy_rows<kKeys, kThreads>(device::shared_address(shared.q), p.q + place.key_row * p.K + key, p.H * p.K, place.chunk.count, threadIdx.x);
    copy_rows<kKeys, kThreads>(device::shared_address(shared.k), p.k + place.key_row * p.K + key, p.H * p.K, place.chunk.count, threadIdx.x);
    load(0), load(1);
    if (others) return device::cp_async_wait<0>();
    float y[kTiles][4] = {}, x[kTiles][4] = {}, z[kTiles][4] = {}, d_p[kTiles][4] = {}, d_m[kTiles][4] = {}, span[8] = {};
    for (int slice = 0; slice < slices; ++slice) {
      device::cp_async_wait<1>();
      __syncthreads();
      load(slice + 2);
      const int stage = slice % kStages * Sizes::kStageBytes;
      add_stage<Sizes, repeats>(y, x, z, d_p, d_m, stages + stage, place, key == 0);
      add_span(span, shared.stages + stage);
    }
    __syncthreads();
    if (key == 0) store_squares<repeats>(shared, d_p, d_m, place);
    store_span(shared, span);
    const float lost = sum_decays(p, place.chunk, place.head, key, shared.work.sums, shared.totals);
    Reach reach = Reach::level;
    if constexpr (repeats) __syncthreads();  // half floats have no room for more
    else reach = reach_of(lost, kRange);
    gradients.begin(shared, spot, p.scale, y, x, z);
    const int least = reach == Reach::level ? 1 : reach == Reach::band ? 16 : kChunk;
#pragma unroll 1  // unrolled, the levels' registers would not fit
    for (int level = 32; level >= least; level /= 2) gradients.add_level(shared, spot, p.scale, level);
    if constexpr (!repeats)
      if (reach != Reach::level) gradients.add_square(shared, spot, p.scale, reach == Reach::chunk);
    gradients.store(shared, spot);
    __syncthreads();
    const int64_t at = place.row * p.K + key;
    if (params.d_q) store_rows<kKeys, kThreads>(shared.q, params.d_q + at, p.HV * p.K, place.chunk.count, threadIdx.x);
    if (params.d_k) store_rows<kKeys, kThreads>(shared.k, params.d_k + at, p.HV * p.K, place.chunk.count, threadIdx.x);
    if (params.d_channel_decay) store_decays(params, place, key, shared);
    __syncthreads();
  }
  const int t = threadIdx.x;
  if (params.d_beta && t < place.chunk.count) params.d_beta[place.row + t * p.HV] = shared.betas[t] / shared.factors[kWrittenBeta][t];
}

template <bool repeats>
__global__ void __launch_bounds__(kThreads, 2) channel_gradient_kernel(GradientParams params) {
  extern __shared__ __align__(128) unsigned char memory[];
  auto& shared = *reinterpret_cast<ChannelShared*>(memory);
  const Problem& p = params.backward.problem;
  each_chunk<repeats>(p, [&](int64_t slot, int64_t j) {
    const Place place(p, slot, j);
    if (place.chunk.count > 0) compute_gradients<repeats>(params, place, shared);
  });
}

}  // namespace

void launch_channel_gradients(Context& ctx, const GradientParams& params) {
  const Problem& p = params.backward.problem;
  cuda::LaunchConfig config{
      .grid = {static_cast<unsigned>(p.slots), static_cast<unsigned>(p.HV)}, .block = kThreads, .shared_bytes = sizeof(ChannelShared)};
  cuda::launch(ctx.stream(), "gated_delta_rule_channel_gradients", &channel_gradient_kernel<false>, config, params);
  config.grid = kFewBlocks;
  cuda::launch(ctx.stream(), "gated_delta_rule_channel_gradients_of_repeats", &channel_gradient_kernel<true>, config, params);
}

}  // namespace braid::delta_cuda
