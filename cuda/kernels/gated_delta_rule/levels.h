// Decays per channel between the tokens of a chunk, 64 channels at a time, by blocks of 256 threads.
//
// exp(G_t − G_s), G the running sum of log decays, has factors exp(G_t) and exp(−G_s), which overflow. So pairs s < t are split by the highest
// bit in which they differ, their level: 32, 16, 8, 4, 2, 1. With m the last token of the lower half of the 2 · level tokens that hold both, t in
// the upper half, the factors exp(G_t − G_m) and exp(G_m − G_s) are at most 1; a token is in one of the halves.
//
// Where decays are weak fewer products hold all pairs: of a square of tokens in which a channel loses at most `range` bits, with r the middle of
// what it loses, exp(G_t − r) and exp(r − G_s) stay below 2^(range / 2), and every pair is their product (Reach).
#pragma once
#include "cuda/device/half.h"
#include "cuda/device/token_tile.h"
#include "cuda/kernels/gated_delta_rule/chunks.h"
#include "cuda/kernels/gated_delta_rule/tiles.h"

namespace braid::delta_cuda {

inline constexpr int kLevels = 6;
inline constexpr int kLevelKeys = 64;  // channels at a time
inline constexpr int kSumPitch = 72;   // floats between rows of sums: eight rows meet different banks
using device::TilePlace;
using LogSums = float[kChunk][kSumPitch];  // G in base 2

/// Log decays in base 2 of 16 tokens of a channel, zero from the chunk's end on. No load waits for another: addresses past the end are clamped.
template <class T>
__device__ inline void load_decays(const T* from, int64_t stride, int first, int count, float (&to)[16]) {
#pragma unroll
  for (int i = 0; i < 16; ++i) to[i] = device::to_float(from[min(first + i, count - 1) * stride]);
#pragma unroll
  for (int i = 0; i < 16; ++i) to[i] = first + i < count ? device::log2_decay(to[i]) : 0.0f;
}

/// sums[t][c] of channels key + c; past the chunk's end as of its last token. `totals` [256] is scratch. Needs a barrier after. Returns how many
/// bits the channel of this thread loses (or gains) in a band of 16 tokens.
__device__ inline float sum_decays(const Problem& p, const Chunk& chunk, int64_t j, int key, LogSums& sums, float* totals) {
  const int c = threadIdx.x % kLevelKeys, group = threadIdx.x / kLevelKeys;
  const int64_t stride = p.HV * p.K, at = (chunk.first * p.HV + j) * p.K + key + c;
  float x[16];
  if (p.channel_decay_is_float) load_decays(static_cast<const float*>(p.channel_decay) + at, stride, 16 * group, chunk.count, x);
  else load_decays(static_cast<const bf16*>(p.channel_decay) + at, stride, 16 * group, chunk.count, x);
  float lost = fabsf(x[0]);
#pragma unroll
  for (int i = 1; i < 16; ++i) lost += fabsf(x[i]), x[i] += x[i - 1];
  totals[threadIdx.x] = x[15];
  __syncthreads();
  float before = 0;
  for (int i = 0; i < group; ++i) before += totals[i * kLevelKeys + c];
#pragma unroll
  for (int i = 0; i < 16; ++i) sums[16 * group + i][c] = before + x[i];
  return lost;
}

/// What one product may hold: the pairs of the whole chunk, those of each band of 16 tokens (with levels 32 and 16 besides), or those of a level.
enum class Reach { chunk, band, level };
/// Of the block's 64 channels, by what sum_decays returned. Has a barrier at least; a NaN counts as too much.
__device__ inline Reach reach_of(float lost, float range) {
  if (!__syncthreads_or(!(lost <= range / 4))) return Reach::chunk;
  return __syncthreads_or(!(lost <= range)) ? Reach::level : Reach::band;
}

/// G_t − r of an element, where one product holds a chunk's or a band's pairs.
__device__ inline float2 above_middle(const LogSums& sums, const TilePlace& spot, int i, int n, bool whole) {
  const int last = whole ? kChunk - 1 : 16 * spot.band + 15;
  const float2 none = {0, 0}, at = *reinterpret_cast<const float2*>(&sums[spot.row(i)][spot.column(n)]);
  const float2 end = *reinterpret_cast<const float2*>(&sums[last][spot.column(n)]);
  const float2 start = whole || spot.band == 0 ? none : *reinterpret_cast<const float2*>(&sums[16 * spot.band - 1][spot.column(n)]);
  return {at.x - 0.5f * (start.x + end.x), at.y - 0.5f * (start.y + end.y)};
}

/// Where the logarithms lie whose difference is the decay between a token and the middle of its square at `level`.
struct FactorAt {
  const float *above, *below;

  __device__ FactorAt(const LogSums& sums, const TilePlace& spot, int i, int level) {
    const int t = spot.row(i), middle = (t & ~(2 * level - 1)) + level - 1;
    const bool upper = t & level;
    above = &sums[upper ? t : middle][spot.column(0)], below = &sums[upper ? middle : t][spot.column(0)];
  }
  /// Of the element's two channels.
  __device__ float2 factor(int n) const {
    const float2 a = *reinterpret_cast<const float2*>(above + 8 * n), b = *reinterpret_cast<const float2*>(below + 8 * n);
    return {device::fast_exp2(a.x - b.x), device::fast_exp2(a.y - b.y)};
  }
};

__device__ inline float2 to_floats(uint32_t pair) { return {device::low_bf16(pair), device::high_bf16(pair)}; }
__device__ inline uint32_t scaled(float2 x, float row, float2 factor) { return device::pack_bf16(row * x.x * factor.x, row * x.y * factor.y); }

// The same of half floats.
__device__ inline float2 halves_to_floats(uint32_t pair) {
  float2 x;
  asm("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %2;\ncvt.f32.f16 %0, low;\ncvt.f32.f16 %1, high;\n}" : "=f"(x.x), "=f"(x.y) : "r"(pair));
  return x;
}
__device__ inline uint32_t scaled_halves(float2 x, float row, float2 factor) { return device::pack_f16(row * x.x * factor.x, row * x.y * factor.y); }
__device__ inline void mma_two_f16(float (&d0)[4], float (&d1)[4], const uint32_t (&a)[4], const uint32_t (&b)[4]) {
  const uint32_t first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
  device::mma_f16(d0, a, first);
  device::mma_f16(d1, a, second);
}

}  // namespace braid::delta_cuda
