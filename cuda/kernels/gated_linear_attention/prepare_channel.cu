// What the walks need of q, k and decays per key channel of each chunk (Prepared, cut.h), one block a chunk and head.
//
// A warp owns a band of 16 tokens as the operands of mma lie, 32 channels at a time. The channels of a product may come in any order, so
// a lane takes eight neighbours straight from memory, and nothing but the keys and the total decays of other bands is shared.
//
// Pairs s < t are split by the highest bit in which they differ, their level. At level L a token has two decays, both at most 1: from the
// first token of its L to itself, which goes with q, and after it to the last of its L, which goes with k. A pair's decay is the first
// of t times the second of s. From one level to the next each token of an upper half multiplies its first, each of a lower one its
// second, with the total of the other half: decays are only multiplied, and each is exponentiated once. From 16 on, bands meet: a
// band's q meets the k of the band before it, decays by that band's total, meets the one before that, and at last is q exp(G).
#include "cuda/kernels/gated_linear_attention/place.h"
#include "cuda/runtime/check.h"

namespace braid::gla_cuda {
namespace {

constexpr int kBands = 4, kBandThreads = 32 * kBands;
constexpr int kStep = 32;  // channels at once
constexpr int kOwn = 8;    // of a lane, in each of its two tokens
constexpr int kNear = 3;   // levels within eight tokens: 1, 2, 4

using Floats = float[2][kOwn];
using OwnWords = uint32_t[2][kOwn / 2];

/// The 16-byte pieces of one step: q and k of a lane's two tokens, then its log decays.
template <class T>
inline constexpr int kPieces = 4 + 2 * kOwn * sizeof(T) / 16;

template <class T>
struct PrepareShared {
  uint4 raw[2][kPieces<T>][kBandThreads];  // by turns; a warp reads what it copied itself
  char pairs[8192];
  uint4 keys[2][kBands - 1][2][32];  // by turns: k decayed to the end of its band, as the right operands of two products
  float totals[2][kBands][kStep];    // decays of whole bands
};

__device__ inline void store_words(const float (&from)[kOwn], float scale, device::bf16* to) {
  uint32_t words[kOwn / 2];
#pragma unroll
  for (int e = 0; e < kOwn / 2; ++e) words[e] = device::pack_bf16(scale * from[2 * e], scale * from[2 * e + 1]);
  *reinterpret_cast<uint4*>(to) = {words[0], words[1], words[2], words[3]};
}
__device__ inline void take_words(const uint4& from, uint32_t (&to)[kOwn / 2]) { to[0] = from.x, to[1] = from.y, to[2] = from.z, to[3] = from.w; }

/// Where a lane's two tokens lie, and the copies of their channels; zeros past the chunk's end. The four lanes of a token copy neighbouring
/// pieces: of float32 decays, not their own.
template <class T>
struct Source {
  const Problem& p;
  const int64_t first;  // element of the earlier token's channels
  const int64_t stride;
  const bool live[2];

  __device__ void load(int64_t column, uint4 (*raw)[kBandThreads]) const {
    const int lane = threadIdx.x % 4;
    if (column < p.K) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int64_t at = first + column + (live[i] ? 8 * i * stride : 0);
        const auto copy = [&](int piece, const void* from) { device::cp_async16(device::shared_address(&raw[piece][threadIdx.x]), from, live[i]); };
        copy(i, live[0] ? static_cast<const device::bf16*>(p.q) + at : p.q);
        copy(2 + i, live[0] ? static_cast<const device::bf16*>(p.k) + at : p.k);
#pragma unroll
        for (int j = 0; j < kPieces<T> / 2 - 2; ++j)
          copy(4 + i + 2 * j, live[0] ? static_cast<const T*>(p.log_decay) + at + (sizeof(T) == 4 ? 16 * j - 4 * lane : 0) : p.log_decay);
      }
    }
    device::cp_async_commit();
  }
};

/// The decays of one of the tokens.
template <class T>
__device__ inline void take_decays(const uint4 (*raw)[kBandThreads], int i, float (&to)[kOwn]) {
  constexpr int count = kPieces<T> / 2 - 2;
#pragma unroll
  for (int j = 0; j < count; ++j) {
    const int piece = static_cast<int>(threadIdx.x) % 4 * count + j;
    uint32_t words[4];
    take_words(raw[4 + i + piece / 4 * 2][threadIdx.x / 4 * 4 + piece % 4], words);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if constexpr (sizeof(T) == 4) to[4 * j + e] = device::fast_exp(__uint_as_float(words[e]));
      else to[2 * e] = device::fast_exp(device::low_bf16(words[e])), to[2 * e + 1] = device::fast_exp(device::high_bf16(words[e]));
    }
  }
}

/// A band's operands and, of each of its elements, the total decay of the tokens it was joined with.
struct Band {
  Floats q, k, total;
  const int index = threadIdx.x / 32, lane = threadIdx.x % 32;

  __device__ int row(int i) const { return 16 * index + lane / 4 + 8 * i; }
  __device__ static void pack(const float (&from)[kOwn], uint32_t (&to)[kOwn / 2]) {
#pragma unroll
    for (int e = 0; e < kOwn / 2; ++e) to[e] = device::pack_bf16(from[2 * e], from[2 * e + 1]);
  }
  /// body(i, e) for all elements of a lane.
  template <class Body>
  __device__ static void each(Body&& body) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int e = 0; e < kOwn; ++e) body(i, e);
  }
  /// Joins the two halves of blocks of 2 · level tokens, level < 8.
  __device__ void join(int level) {
    const bool upper = lane / 4 & level;
    each([&](int i, int e) {
      const float other = __shfl_xor_sync(0xffffffffu, total[i][e], 4 * level);
      if (upper) q[i][e] *= other;
      else k[i][e] *= other;
      total[i][e] *= other;
    });
  }
  __device__ void join_eights() {
#pragma unroll
    for (int e = 0; e < kOwn; ++e) q[1][e] *= total[0][e], k[0][e] *= total[1][e], total[0][e] *= total[1][e];
  }
};

/// The pairs of a band's tokens: with each other in the 8×8 blocks on the diagonal by level, in the block below them, with the bands before.
struct PairSums {
  float same[4] = {}, near[kNear][4] = {}, eight[4] = {}, far[kBands - 1][2][4] = {};

  /// sum += the products of each eight tokens with themselves: rows of `a`, columns of `b`.
  __device__ static void add_eights(const OwnWords& a, const OwnWords& b, float (&sum)[4]) {
#pragma unroll
    for (int e = 0; e < kOwn / 2; e += 2) {
      device::mma_bf16(sum, {a[0][e], 0, a[0][e + 1], 0}, {b[0][e], b[0][e + 1]});
      device::mma_bf16(sum, {0, a[1][e], 0, a[1][e + 1]}, {b[1][e], b[1][e + 1]});
    }
  }
  /// Of the levels below eight.
  __device__ void add_near(Band& band) {
#pragma unroll
    for (int i = 0; i < kNear; ++i) {
      const bool upper = band.lane / 4 & 1 << i;
      OwnWords words;
#pragma unroll
      for (int r = 0; r < 2; ++r)
#pragma unroll
        for (int e = 0; e < kOwn / 2; ++e)
          words[r][e] = device::pack_bf16(upper ? band.q[r][2 * e] : band.k[r][2 * e], upper ? band.q[r][2 * e + 1] : band.k[r][2 * e + 1]);
      add_eights(words, words, near[i]);
      band.join(1 << i);
    }
  }
  __device__ void add_eight(Band& band) {
    uint32_t q[kOwn / 2], k[kOwn / 2];
    band.pack(band.q[1], q), band.pack(band.k[0], k);
#pragma unroll
    for (int e = 0; e < kOwn / 2; e += 2) device::mma_bf16(eight, {0, q[e], 0, q[e + 1]}, {k[e], k[e + 1]});
    band.join_eights();
  }

  /// Into a tile [64, 64] of zeros.
  __device__ void store(const Band& band, char* tile, float scale) const {
    const int row = band.lane / 4, column = band.lane % 4 * 2, b = band.index;
    const auto put = [&](int t, int piece, float left, float right) { put_pair(tile, t, 8 * piece + column, scale * left, scale * right); };
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float own[2];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int apart = row ^ (column + e), at = 2 * i + e;
        own[e] = column + e > row ? 0.0f : apart == 0 ? same[at] : apart == 1 ? near[0][at] : apart < 4 ? near[1][at] : near[2][at];
      }
      put(16 * b + row + 8 * i, 2 * b + i, own[0], own[1]);
    }
    put(16 * b + row + 8, 2 * b, eight[2], eight[3]);
#pragma unroll
    for (int d = 0; d < kBands - 1; ++d)
      if (d < b) {
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          put(16 * b + row, 2 * (b - 1 - d) + n, far[d][n][0], far[d][n][1]);
          put(16 * b + row + 8, 2 * (b - 1 - d) + n, far[d][n][2], far[d][n][3]);
        }
      }
  }
};

/// Shares a band's keys and total.
__device__ inline void share(const Band& band, uint4 (&keys)[kBands - 1][2][32], float (&totals)[kBands][kStep]) {
  if (band.lane < 4) {
#pragma unroll
    for (int e = 0; e < kOwn; ++e) totals[band.index][kOwn * band.lane + e] = band.total[0][e];
  }
  if (band.index == kBands - 1) return;
  OwnWords k;
  band.pack(band.k[0], k[0]), band.pack(band.k[1], k[1]);
#pragma unroll
  for (int s = 0; s < 2; ++s) keys[band.index][s][band.lane] = {k[0][2 * s], k[0][2 * s + 1], k[1][2 * s], k[1][2 * s + 1]};
}

__device__ inline void scale_by(const float* totals, Floats& x) {
#pragma unroll
  for (int e = 0; e < kOwn; ++e) {
    const float total = totals[e];
    x[0][e] *= total, x[1][e] *= total;
  }
}

/// The band's q meets the keys of the bands before it, its k decays over those after it.
__device__ inline void meet_bands(Band& band, const uint4 (&keys)[kBands - 1][2][32], const float (&totals)[kBands][kStep], PairSums& pairs) {
  const int own = kOwn * (band.lane % 4);
#pragma unroll
  for (int d = 0; d < kBands - 1; ++d)
    if (d < band.index) {
      const int other = band.index - 1 - d;
      OwnWords q;
      band.pack(band.q[0], q[0]), band.pack(band.q[1], q[1]);
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        const uint4 k = keys[other][s][band.lane];
        const uint32_t a[4] = {q[0][2 * s], q[1][2 * s], q[0][2 * s + 1], q[1][2 * s + 1]};
        device::mma_bf16(pairs.far[d][0], a, {k.x, k.y});
        device::mma_bf16(pairs.far[d][1], a, {k.z, k.w});
      }
      scale_by(&totals[other][own], band.q);
    } else {
      scale_by(&totals[band.index + kBands - 1 - d][own], band.k);
    }
}

template <class T>
__global__ void __launch_bounds__(kBandThreads, 4) prepare_channel(PrepareParams params) {
  __shared__ __align__(128) PrepareShared<T> shared;
  const Problem& p = params.problem;
  const Block block = block_of(p.H);
  const Piece chunk = piece_of<kChunk>(params.chunks, block.slot);
  if (chunk.count == 0) return;
  const int64_t h = block.h, stride = p.H * p.K, slot = chunk.slot * p.H + h;
  Band band;
  PairSums pairs;
  for (int i = threadIdx.x; i < 512; i += kBandThreads) reinterpret_cast<uint4*>(shared.pairs)[i] = {};
  const int64_t first = (chunk.first + band.row(0)) * stride + h * p.K + kOwn * (band.lane % 4);
  const Source<T> source{p, first, stride, {band.row(0) < chunk.count, band.row(1) < chunk.count}};
  source.load(0, shared.raw[0]);
  source.load(kStep, shared.raw[1]);
  int turn = 0;
#pragma unroll 1
  for (int64_t column = 0; column < p.K; column += kStep, turn ^= 1) {
    OwnWords q, k;
    device::cp_async_wait<1>();
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      take_words(shared.raw[turn][i][threadIdx.x], q[i]), take_words(shared.raw[turn][2 + i][threadIdx.x], k[i]);
      take_decays<T>(shared.raw[turn], i, band.total[i]);
    }
    __syncwarp();
    source.load(column + 2 * kStep, shared.raw[turn]);
    PairSums::add_eights(q, k, pairs.same);
    Band::each([&](int i, int e) {
      const uint32_t q_word = q[i][e / 2], k_word = k[i][e / 2];
      band.q[i][e] = (e % 2 ? device::high_bf16(q_word) : device::low_bf16(q_word)) * band.total[i][e];
      band.k[i][e] = e % 2 ? device::high_bf16(k_word) : device::low_bf16(k_word);
    });
    pairs.add_near(band);
    pairs.add_eight(band);
    share(band, shared.keys[turn], shared.totals[turn]);
    __syncthreads();
    meet_bands(band, shared.keys[turn], shared.totals[turn], pairs);
#pragma unroll
    for (int i = 0; i < 2; ++i)
      if (source.live[i]) {
        const int64_t at = first + column + 8 * i * stride;
        store_words(band.q[i], p.scale, params.q + at), store_words(band.k[i], 1, params.k + at);
      }
    if (threadIdx.x < kStep) {
      float decay = 1;
#pragma unroll
      for (int b = 0; b < kBands; ++b) decay *= shared.totals[turn][b][threadIdx.x];
      params.decay[slot * p.K + column + threadIdx.x] = decay;
    }
  }
  pairs.store(band, shared.pairs, p.scale);
  __syncthreads();
  store_tile<64, kBandThreads>(shared.pairs, params.pairs + slot * 4096, 64, 64);
}

}  // namespace

void launch_prepare_channel(Context& ctx, const PrepareParams& params) {
  const cuda::LaunchConfig config{.grid = grid_of(params.chunks.slots, params.problem.H), .block = kBandThreads};
  cuda::launch(ctx.stream(), "gated_linear_attention_prepare",
               params.problem.decay_is_float ? &prepare_channel<float> : &prepare_channel<device::bf16>, config, params);
}

}  // namespace braid::gla_cuda
