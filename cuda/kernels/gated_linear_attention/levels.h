// Products within a chunk of 64 tokens, with decays per key channel. Device code.
//
// The decay between tokens s < t is exp(G_t - G_s), G the running sum of log decays; its factors exp(G_t) and exp(-G_s) overflow. So
// pairs are split by the highest bit in which s and t differ, their level: 32, 16, 8, 4, 2, 1. The pairs of one level lie in squares,
// t in the upper half of 2 · level tokens, s in the lower one, and with m the last token of the lower half both factors exp(G_t - G_m),
// exp(G_m - G_s) are at most 1. A token is in one half only, so one tile of 64 rows serves both sides of the product:
//   scaled_t = q_t exp(G_t - G_m) in upper halves, k_t exp(G_m - G_t) in lower ones.
#pragma once
#include "cuda/kernels/gated_linear_attention/cut.h"
#include "cuda/kernels/gated_linear_attention/tiles.h"

namespace braid::gla_cuda {

inline constexpr int kLevels = 6;
inline constexpr int kColumns = 64;    // key channels at once
inline constexpr int kSumStride = 72;  // floats between rows of sums: eight rows meet different banks
inline constexpr int kLevelThreads = 256;
// exp2 of it is zero in float32; sums of 64 keep three digits of any weaker decay beside it, and no infinity meets another.
inline constexpr float kForgotten = -150;

__device__ inline float exp2_of(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

/// A log decay in base 2; a NaN stays one.
__device__ inline float in_base_2(float log_decay) {
  const float scaled = log_decay * 1.4426950408889634f;
  return scaled < kForgotten ? kForgotten : scaled;
}

/// log2 of the decays of tokens `first` … `first` + size - 1 of the chunk, zero from its end on. No load waits for another: addresses
/// past the end are clamped, not branched around.
template <class T, int size>
__device__ inline void load_decays(const Problem& p, const Piece& chunk, int64_t h, int64_t key, int first, float (&to)[size]) {
  const T* const from = static_cast<const T*>(p.log_decay) + chunk.first * p.decay_token + h * p.decay_head + key * p.decay_key;
  const int count = static_cast<int>(chunk.count);
#pragma unroll
  for (int i = 0; i < size; ++i) to[i] = device::to_float(from[min(first + i, count - 1) * p.decay_token]);
#pragma unroll
  for (int i = 0; i < size; ++i) to[i] = first + i < count ? in_base_2(to[i]) : 0.0f;
}
template <int size>
__device__ inline void load_decays(const Problem& p, const Piece& chunk, int64_t h, int64_t key, int first, float (&to)[size]) {
  if (!p.log_decay) {
#pragma unroll
    for (int i = 0; i < size; ++i) to[i] = 0;
  } else if (p.decay_is_float) {
    load_decays<float>(p, chunk, h, key, first, to);
  } else {
    load_decays<device::bf16>(p, chunk, h, key, first, to);
  }
}

/// sums[t][c]: log2 of the product of the decays of the chunk's tokens up to and with t; past its end as of its last one. `totals`
/// [4 * kColumns] is scratch. Needs a barrier after.
__device__ inline void sum_decays(const Problem& p, const Piece& chunk, int64_t h, int64_t column, float (*sums)[kSumStride], float* totals) {
  const int c = threadIdx.x % kColumns, group = threadIdx.x / kColumns;
  float x[16];
  load_decays(p, chunk, h, column + c, 16 * group, x);
#pragma unroll
  for (int i = 1; i < 16; ++i) x[i] += x[i - 1];
  totals[group * kColumns + c] = x[15];
  __syncthreads();
  float before = 0;
  for (int i = 0; i < group; ++i) before += totals[i * kColumns + c];
#pragma unroll
  for (int i = 0; i < 16; ++i) sums[16 * group + i][c] = before + x[i];
}

/// The same of decays that the head's channels share: sums [64]. `scratch` [64]. Needs a barrier after.
__device__ inline void sum_head_decays(const Problem& p, const Piece& chunk, int64_t h, float* sums, float* scratch) {
  const int t = threadIdx.x;
  float own[1];
  load_decays(p, chunk, h, 0, t, own);
  if (t < 64) scratch[t] = own[0];
  __syncthreads();
  float sum = 0;
  for (int i = 0; t < 64 && i <= t; ++i) sum += scratch[i];
  if (t < 64) sums[t] = sum;
}

/// The elements of a tile of 64 tokens and 64 channels that a thread owns, as accumulators of mma lie: warps share out 4 × 2 blocks of 16
/// tokens and 32 channels; element [i][j] is channels column(j), + 1 of token row(i).
struct Place {
  const int lane = threadIdx.x % 32, band = threadIdx.x / 32 % 4, half = threadIdx.x / 128;
  __device__ int row(int i) const { return 16 * band + lane / 4 + 8 * i; }
  __device__ int column(int j) const { return 32 * half + 8 * j + lane % 4 * 2; }
  __device__ int byte(int i, int j) const { return tile_byte(row(i), 4 * half + j) + lane % 4 * 4; }
  __device__ bool is_upper(int i, int level) const { return row(i) & level; }
};

using Words = uint32_t[2][4];  // two bf16 each
using Pairs = float2[2][4];

__device__ inline uint32_t& word_at(char* tile, const Place& place, int i, int j) { return *reinterpret_cast<uint32_t*>(tile + place.byte(i, j)); }

/// body(i, j) for all eight elements of a thread.
template <class Body>
__device__ inline void each(Body&& body) {
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) body(i, j);
}

/// Where the logarithms lie whose difference is the decay between a token and the middle of its square at `level`.
struct FactorAt {
  const float *above, *below;

  __device__ FactorAt(const float (*sums)[kSumStride], const Place& place, int i, int level) {
    const int t = place.row(i), middle = (t & ~(2 * level - 1)) + level - 1;
    const bool upper = place.is_upper(i, level);
    above = &sums[upper ? t : middle][place.column(0)], below = &sums[upper ? middle : t][place.column(0)];
  }
  /// Of this place's column j and the next.
  __device__ float2 factor(int j) const {
    const float2 a = *reinterpret_cast<const float2*>(above + 8 * j), b = *reinterpret_cast<const float2*>(below + 8 * j);
    return {exp2_of(a.x - b.x), exp2_of(a.y - b.y)};
  }
};

/// sum += a [this place's 16 tokens, 64] · (b [its 32 rows, 64])ᵀ, tiles of 64 columns.
__device__ inline void add_row_products(const char* a_tile, const char* b_tile, const Place& place, float (&sum)[4][4]) {
  const BlockAddress a_at(device::shared_address(a_tile), true), b_at(device::shared_address(b_tile), false);
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    uint32_t a[4];
    device::ldmatrix_x4(a, a_at.at(place.band, k));
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      uint32_t b[4];
      device::ldmatrix_x4(b, b_at.at(2 * place.half + j, k));
      device::mma_bf16(sum[2 * j], a, {b[0], b[1]});
      device::mma_bf16(sum[2 * j + 1], a, {b[2], b[3]});
    }
  }
}

__device__ inline uint32_t scaled_word(uint32_t word, float2 factor) {
  return device::pack_bf16(device::low_bf16(word) * factor.x, device::high_bf16(word) * factor.y);
}

}  // namespace braid::gla_cuda
