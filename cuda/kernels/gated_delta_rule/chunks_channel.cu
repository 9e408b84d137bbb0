// What a chunk is before any state is known, with a decay per channel: rows of q and k decayed from the chunk's start and to its end, scores P and
// A = (I + L)^{-1}, P and L summed over channels by levels (levels.h). All chunks in parallel.
//
// Pairs are products of half floats, three digits finer than bf16: rows are brought into their range by powers of two, factors are at most 1, and
// what is below 2^−24 beside a row's largest element counts as zero.
#include "cuda/device/reduce.h"
#include "cuda/kernels/gated_delta_rule/inverse.h"
#include "cuda/kernels/gated_delta_rule/levels.h"
#include "cuda/runtime/check.h"

namespace braid::delta_cuda {
namespace {

constexpr float kRange = 20;  // half floats have all their digits between 2^−14 and 2^16

struct ChannelShared {
  struct Rows {
    unsigned char q[kTileBytes], k[kTileBytes];
    unsigned char scaled[2][2][kTileBytes];  // by turns, so that one barrier a level is enough: queries or lower keys, upper keys
    LogSums sums;
  };
  union {
    Rows rows;
    Squares squares;
  };
  float factors[kNumFactors][kChunk];
  float q_shift[kChunk], k_shift[kChunk];
  float diagonal[2][kChunk];
  float totals[device::kTileThreads];
};

__device__ inline float shift_for(float size) {
  const int exponent = size > 0 ? max(min(ilogbf(size), 100), -100) : 0;
  return ldexpf(1.0f, -exponent);
}

/// The power of two that brings the largest element of each row to about 1.
__device__ inline void find_shifts(const bf16* rows, int64_t stride, int64_t K, int count, float* shifts) {
  const int row = threadIdx.x / 4, quarter = threadIdx.x % 4;
  float largest = 0;
  for (int64_t c = 8 * quarter; row < count && c < K; c += 32) {
    float x[8];
    device::load(rows + row * stride + c, x);
#pragma unroll
    for (int i = 0; i < 8; ++i) largest = fmaxf(largest, fabsf(x[i]));
  }
  largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
  largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
  if (quarter == 0) shifts[row] = shift_for(largest);
}

/// The same of q and k: by their lengths where these are known and not mostly epsilon, which are at most 16 times the largest element.
__device__ inline void find_shifts(const Problem& p, const Chunk& chunk, int64_t head, ChannelShared& shared) {
  const int64_t row = chunk.first * p.H + head, at = row * p.K, stride = p.H * p.K;
  if (p.q_norm) {
    const int i = threadIdx.x % kChunk;
    const bool of_q = threadIdx.x < kChunk, reads = threadIdx.x < 2 * kChunk && i < chunk.count;
    const float norm = reads ? (of_q ? p.q_norm : p.k_norm)[(row + i * p.H) * 2] : 1.0f;
    if (!__syncthreads_or(norm > 100)) {
      if (threadIdx.x < 2 * kChunk) (of_q ? shared.q_shift : shared.k_shift)[i] = shift_for(1 / norm);
      return;
    }
  }
  find_shifts(p.q + at, stride, p.K, chunk.count, shared.q_shift);
  find_shifts(p.k + at, stride, p.K, chunk.count, shared.k_shift);
}

__device__ inline void load_factors(const Problem& p, const Chunk& chunk, int64_t j, ChannelShared& shared) {
  if (threadIdx.x >= kChunk) return;
  const int i = threadIdx.x;
  const bool live = i < chunk.count;
  const int64_t token = chunk.first + (live ? i : 0), row = token * p.H + j / (p.HV / p.H);
  shared.factors[kBeta][i] = live ? p.beta[token * p.HV + j] : 0.0f;
  shared.factors[kWrittenBeta][i] = live ? written_beta(p.beta[token * p.HV + j]) : 0.0f;
  shared.factors[kKeyNorm][i] = live && p.k_norm ? p.k_norm[row * 2] : 1.0f;
  shared.factors[kQueryNorm][i] = p.scale * (live && p.q_norm ? p.q_norm[row * 2] : 1.0f);
}

/// The pairs of a warp's band of 16 tokens: with those of the other half chunk, of the neighbouring band, and of their own band.
struct PairSums {
  float far[4][4] = {}, middle[2][4] = {}, near[2][4] = {};

  /// Tokens of `rows` with those of `columns`.
  __device__ void add(const unsigned char* rows, const unsigned char* columns, const TilePlace& spot, int level) {
    if ((level == 32 && spot.band < 2) || (level == 16 && spot.band % 2 == 0)) return;
    const uint32_t by_columns = lane_offset<kLevelKeys, false>(), by_rows = lane_offset<kLevelKeys, true>();
    const uint32_t a_tile = device::shared_address(rows), b_tile = device::shared_address(columns);
    float sum[2][4] = {};
#pragma unroll
    for (int c = 0; c < kLevelKeys; c += 16) {
      uint32_t a[4], b[4];
      device::ldmatrix_x4(a, a_tile + block_at<kLevelKeys>(by_columns, 16 * spot.band, c));
      if (level == 32) {
#pragma unroll
        for (int n = 0; n < 4; n += 2) {
          device::ldmatrix_x4(b, b_tile + block_at<kLevelKeys>(by_rows, 8 * n, c));
          mma_two_f16(far[n], far[n + 1], a, b);
        }
      } else if (level == 16) {
        device::ldmatrix_x4(b, b_tile + block_at<kLevelKeys>(by_rows, 16 * (spot.band - 1), c));
        mma_two_f16(middle[0], middle[1], a, b);
      } else {
        device::ldmatrix_x4(b, b_tile + block_at<kLevelKeys>(by_rows, 16 * spot.band, c));
        mma_two_f16(sum[0], sum[1], a, b);
      }
    }
    if (level >= 16) return;
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int t = spot.lane / 4 + i / 2 * 8, s = 8 * n + spot.lane % 4 * 2 + i % 2;
        if ((t & level) && !(s & level) && ((t ^ s) & ~(2 * level - 1)) == 0) near[n][i] += sum[n][i];
      }
  }

  /// All pairs of the chunk, or of the bands; what pairs with s ≥ t give is of no use.
  __device__ void add_all(const unsigned char* rows, const unsigned char* columns, const TilePlace& spot, bool whole) {
    const uint32_t by_columns = lane_offset<kLevelKeys, false>(), by_rows = lane_offset<kLevelKeys, true>();
    const uint32_t a_tile = device::shared_address(rows), b_tile = device::shared_address(columns);
#pragma unroll
    for (int c = 0; c < kLevelKeys; c += 16) {
      uint32_t a[4], b[4];
      device::ldmatrix_x4(a, a_tile + block_at<kLevelKeys>(by_columns, 16 * spot.band, c));
      const auto add = [&](float(&sum)[4], float(&next)[4], int first) {
        device::ldmatrix_x4(b, b_tile + block_at<kLevelKeys>(by_rows, first, c));
        mma_two_f16(sum, next, a, b);
      };
      if (whole && spot.band >= 2) add(far[0], far[1], 0), add(far[2], far[3], 16);
      if (whole && spot.band % 2) add(middle[0], middle[1], 16 * (spot.band - 1));
      add(near[0], near[1], 16 * spot.band);
    }
  }

  /// body(t, s, sum) for all pairs of the warp with s < t, and for some others.
  template <class Body>
  __device__ void visit(const TilePlace& spot, Body&& body) const {
    const auto tile = [&](const float(&sum)[4], int first) {
#pragma unroll
      for (int i = 0; i < 4; ++i) body(spot.row(i / 2), first + spot.lane % 4 * 2 + i % 2, sum[i]);
    };
#pragma unroll
    for (int n = 0; n < 4; ++n)
      if (spot.band >= 2) tile(far[n], 8 * n);
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      if (spot.band % 2) tile(middle[n], 16 * (spot.band - 1) + 8 * n);
      tile(near[n], 16 * spot.band + 8 * n);
    }
  }
};

/// A slice's elements of q and k, two channels each, brought into range.
using Halves = uint32_t[2][4];

/// The pairs of one level.
__device__ inline void add_level(ChannelShared& shared, const TilePlace& spot, const Halves& q, const Halves& k, int b, PairSums& pairs) {
  auto& rows = shared.rows;
  const int level = 1 << b;
  unsigned char *const first = rows.scaled[b % 2][0], *const second = rows.scaled[b % 2][1];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const FactorAt at(rows.sums, spot, i, level);
    const bool upper = spot.row(i) & level;
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const float2 f = at.factor(n);
      const uint32_t factor = device::pack_f16(f.x, f.y), key = device::multiply_f16(k[i][n], factor);
      spot.word(first, i, n) = upper ? device::multiply_f16(q[i][n], factor) : key;
      if (upper) spot.word(second, i, n) = key;  // lower rows of it are read, but what comes of them is not
    }
  }
  __syncthreads();
  pairs.add(spot.half == 0 ? first : second, first, spot, level);
}

/// All pairs of the chunk, or of its bands, in one product. Ends with a barrier.
__device__ inline void add_square(ChannelShared& shared, const TilePlace& spot, const Halves& q, const Halves& k, bool whole, PairSums& pairs) {
  auto& rows = shared.rows;
  unsigned char *const queries = rows.scaled[0][0], *const late = rows.scaled[0][1], *const early = rows.scaled[1][0];
  TilePlace::each([&](int i, int n) {
    const float2 above = above_middle(rows.sums, spot, i, n, whole);
    const uint32_t up = device::pack_f16(device::fast_exp2(above.x), device::fast_exp2(above.y));
    const uint32_t down = device::pack_f16(device::fast_exp2(-above.x), device::fast_exp2(-above.y));
    spot.word(queries, i, n) = device::multiply_f16(q[i][n], up), spot.word(late, i, n) = device::multiply_f16(k[i][n], up);
    spot.word(early, i, n) = device::multiply_f16(k[i][n], down);
  });
  __syncthreads();
  pairs.add_all(spot.half == 0 ? queries : late, early, spot, whole);
  __syncthreads();
}

/// Pairs of a slice of 64 channels, and the diagonal of q k^T.
__device__ inline void add_slice(ChannelShared& shared, const TilePlace& spot, Reach reach, PairSums& pairs, float (&diagonal)[2]) {
  auto& rows = shared.rows;
  Halves q, k;
  TilePlace::each([&](int i, int n) {
    const float q_shift = shared.q_shift[spot.row(i)], k_shift = shared.k_shift[spot.row(i)];
    const float2 x = to_floats(spot.word(rows.q, i, n)), y = to_floats(spot.word(rows.k, i, n));
    q[i][n] = device::pack_f16(q_shift * x.x, q_shift * x.y), k[i][n] = device::pack_f16(k_shift * y.x, k_shift * y.y);
    diagonal[i] += (q_shift * x.x) * (k_shift * y.x) + (q_shift * x.y) * (k_shift * y.y);
  });
  if (reach == Reach::chunk) return add_square(shared, spot, q, k, true, pairs);
  const int least = reach == Reach::band ? 4 : 0;
#pragma unroll 1
  for (int b = kLevels - 1; b >= least; --b) add_level(shared, spot, q, k, b, pairs);
  __syncthreads();  // all have read what is written next
  if (reach == Reach::band) add_square(shared, spot, q, k, false, pairs);
}

/// The decayed rows of a slice; a barrier after the last that read `scaled[1]`.
__device__ inline void store_decayed(const Problem& p, const Chunk& chunk, int64_t j, int key, ChannelShared& shared, const TilePlace& spot) {
  auto& rows = shared.rows;
  unsigned char *const out = rows.scaled[1][0], *const out_rest = rows.scaled[1][1];
  TilePlace::each([&](int i, int n) {
    const int t = spot.row(i);
    const float2 sum = *reinterpret_cast<const float2*>(&rows.sums[t][spot.column(n)]);
    const float2 all = *reinterpret_cast<const float2*>(&rows.sums[kChunk - 1][spot.column(n)]);
    const float2 in = {device::fast_exp2(sum.x), device::fast_exp2(sum.y)};
    uint32_t &q = spot.word(rows.q, i, n), &k = spot.word(rows.k, i, n);
    const float norm = shared.factors[kKeyNorm][t];
    const float2 x = to_floats(q), y = to_floats(k);
    q = scaled(x, shared.factors[kQueryNorm][t], in), k = scaled(y, norm, in);
    const float out_x = norm * y.x * device::fast_exp2(all.x - sum.x), out_y = norm * y.y * device::fast_exp2(all.y - sum.y);
    const uint32_t pair = device::pack_bf16(out_x, out_y);
    spot.word(out, i, n) = pair, spot.word(out_rest, i, n) = rest_of(pair, out_x, out_y);
  });
  if (threadIdx.x < kLevelKeys) (&shared.factors[0][0])[kTotals + key + threadIdx.x] = device::fast_exp2(rows.sums[kChunk - 1][threadIdx.x]);
  __syncthreads();
  const int64_t at = (chunk.first * p.HV + j) * p.K + key, part = p.N * p.HV * p.K;
  const auto store = [&](Decayed which, const unsigned char* tile) {
    store_rows<kLevelKeys, device::kTileThreads>(tile, p.decayed + which * part + at, p.HV * p.K, chunk.count, threadIdx.x);
  };
  store(kQueriesIn, rows.q), store(kKeysIn, rows.k), store(kKeysOut, out), store(kKeysOutRest, out_rest);
  __syncthreads();
}

/// P and its rest, A and its rest.
__device__ inline void store_squares(ChannelShared& shared, const TilePlace& spot, const PairSums& pairs, const float (&diagonal)[2], bf16* to) {
  auto& squares = shared.squares;
  for (int i = threadIdx.x; i < kChunk * kPitch; i += device::kTileThreads) (&squares.lower[0][0])[i] = (&squares.inverse[0][0])[i] = 0;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float sum = diagonal[i] + __shfl_xor_sync(0xffffffffu, diagonal[i], 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    if (spot.lane % 4 == 0) shared.diagonal[spot.half][spot.row(i)] = sum;
  }
  float *const query = shared.q_shift, *const key = shared.k_shift;
  if (threadIdx.x < kChunk) query[threadIdx.x] = shared.factors[kQueryNorm][threadIdx.x] / query[threadIdx.x];
  else if (threadIdx.x < 2 * kChunk) key[threadIdx.x - kChunk] = shared.factors[kKeyNorm][threadIdx.x - kChunk] / key[threadIdx.x - kChunk];
  __syncthreads();
  const float* const beta = shared.factors[kWrittenBeta];
  pairs.visit(spot, [&](int t, int s, float sum) {
    if (s >= t) return;
    if (spot.half == 0) squares.inverse[t][s] = query[t] * sum * key[s];  // P for now
    else squares.lower[t][s] = beta[t] * (key[t] * sum * key[s]);
  });
  if (threadIdx.x < kChunk) {
    const int t = threadIdx.x;
    squares.inverse[t][t] = query[t] * (shared.diagonal[0][t] + shared.diagonal[1][t]) * key[t];
  }
  __syncthreads();
  store_split<device::kTileThreads>(squares.inverse, to + 2 * kTriangle);
  __syncthreads();
  invert<device::kTileThreads>(squares);
  store_split<device::kTileThreads>(squares.inverse, to);
}

/// By the first warp. Keys that no channel remembers for long do not count: the gradients' half floats are for those that are remembered.
__device__ inline void check_repeats(const Problem& p, const Chunk& chunk, const ChannelShared& shared, int* repeats) {
  float largest = 0;
  for (int64_t c = threadIdx.x; c < p.K; c += 32) largest = fmaxf(largest, (&shared.factors[0][0])[kTotals + c]);
  largest = device::warp_max(largest);
  if (threadIdx.x == 0 && largest <= device::fast_exp2(-1.5f * static_cast<float>(chunk.count))) *repeats = 0;
}

/// Whether keys repeat, by their first 64 channels. A block has a chunk and a head, and writes to all value heads of it.
constexpr int kRepeatThreads = 128;
__global__ void __launch_bounds__(kRepeatThreads) channel_repeats_kernel(Problem p) {
  __shared__ __align__(128) unsigned char tile[kTileBytes];
  __shared__ float norms[kChunk], sums[3][4];
  const Chunk chunk = chunk_of(p, blockIdx.x);
  if (chunk.count == 0) return;
  const int64_t head = blockIdx.y, row = chunk.first * p.H + head;
  copy_rows<kLevelKeys, kRepeatThreads>(device::shared_address(tile), p.k + row * p.K, p.H * p.K, chunk.count, threadIdx.x);
  device::cp_async_commit();
  if (threadIdx.x < kChunk) norms[threadIdx.x] = p.k_norm && threadIdx.x < chunk.count ? p.k_norm[(row + threadIdx.x * p.H) * 2] : 1.0f;
  device::cp_async_wait<0>();
  __syncthreads();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint32_t start = device::shared_address(tile);
  float products[8][4] = {};
#pragma unroll
  for (int c = 0; c < kLevelKeys; c += 16) {
    uint32_t a[4], b[4];
    device::ldmatrix_x4(a, start + block_at<kLevelKeys>(lane_offset<kLevelKeys, false>(), 16 * warp, c));
#pragma unroll
    for (int n = 0; n < 8; n += 2) {
      device::ldmatrix_x4(b, start + block_at<kLevelKeys>(lane_offset<kLevelKeys, true>(), 8 * n, c));
      mma_two(products[n], products[n + 1], a, b);
    }
  }
  float all = 0, own = 0, own_squared = 0;
#pragma unroll
  for (int n = 0; n < 8; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int t = 16 * warp + lane / 4 + i / 2 * 8, s = 8 * n + lane % 4 * 2 + i % 2;
      const float cosine = norms[t] * norms[s] * products[n][i];
      all += cosine * cosine;
      if (s == t) own += cosine, own_squared += cosine * cosine;
    }
  all = device::warp_sum(all), own = device::warp_sum(own), own_squared = device::warp_sum(own_squared);
  if (lane == 0) sums[0][warp] = all, sums[1][warp] = own, sums[2][warp] = own_squared;
  __syncthreads();
  const auto sum = [&](int i) { return sums[i][0] + sums[i][1] + sums[i][2] + sums[i][3]; };
  const int64_t group = p.HV / p.H;
  for (int64_t j = threadIdx.x; j < group; j += kRepeatThreads) p.repeats[blockIdx.x * p.HV + head * group + j] = keys_repeat(sum(0), sum(1), sum(2));
}

__global__ void __launch_bounds__(device::kTileThreads, 3) channel_chunk_kernel(Problem p) {
  extern __shared__ __align__(128) unsigned char memory[];
  auto& shared = *reinterpret_cast<ChannelShared*>(memory);
  const Chunk chunk = chunk_of(p, blockIdx.x);
  if (chunk.count == 0) return;
  const int64_t j = blockIdx.y, lane = blockIdx.x * p.HV + j, stride = p.H * p.K, at = (chunk.first * p.H + j / (p.HV / p.H)) * p.K;
  const TilePlace spot;
  PairSums pairs;
  float diagonal[2] = {};
  load_factors(p, chunk, j, shared);
  find_shifts(p, chunk, j / (p.HV / p.H), shared);
  for (int key = 0; key < p.K; key += kLevelKeys) {
    copy_rows<kLevelKeys, device::kTileThreads>(device::shared_address(shared.rows.q), p.q + at + key, stride, chunk.count, threadIdx.x);
    copy_rows<kLevelKeys, device::kTileThreads>(device::shared_address(shared.rows.k), p.k + at + key, stride, chunk.count, threadIdx.x);
    device::cp_async_commit();
    const float lost = sum_decays(p, chunk, j, key, shared.rows.sums, shared.totals);
    device::cp_async_wait<0>();
    add_slice(shared, spot, reach_of(lost, kRange), pairs, diagonal);
    store_decayed(p, chunk, j, key, shared, spot);
  }
  if (threadIdx.x < 32) check_repeats(p, chunk, shared, p.repeats + lane);
  float* factors = p.factors + lane * kNumFactors * kChunk;
  for (int i = threadIdx.x; i < kNumFactors * kChunk; i += device::kTileThreads) factors[i] = shared.factors[i / kChunk][i % kChunk];
  store_squares(shared, spot, pairs, diagonal, p.triangles + lane * 4 * kTriangle);
}

}  // namespace

void launch_channel_chunks(Context& ctx, const Problem& p) {
  const cuda::LaunchConfig repeats{.grid = {static_cast<unsigned>(p.slots), static_cast<unsigned>(p.H)}, .block = kRepeatThreads};
  cuda::launch(ctx.stream(), "gated_delta_rule_channel_repeats", &channel_repeats_kernel, repeats, p);
  const cuda::LaunchConfig config{
      .grid = {static_cast<unsigned>(p.slots), static_cast<unsigned>(p.HV)}, .block = device::kTileThreads, .shared_bytes = sizeof(ChannelShared)};
  cuda::launch(ctx.stream(), "gated_delta_rule_channel_chunks", &channel_chunk_kernel, config, p);
}

}  // namespace braid::delta_cuda
