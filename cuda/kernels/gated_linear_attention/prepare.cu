// What the walks need of q, k and the decays of each chunk (Prepared, cut.h), one block a chunk and head.
#include "cuda/kernels/gated_linear_attention/levels.h"
#include "cuda/runtime/check.h"

namespace braid::gla_cuda {
namespace {

struct PrepareShared {
  char q[8192], k[8192], scaled[2][8192];  // tiles of 64 channels; `scaled` by turns, so that one barrier a level is enough
  float sums[64][kSumStride];
  float totals[4 * kColumns];
};

/// sum [16, 8] += a [16 tokens of block `row`, 64 channels] · (b [8 tokens of block `column`, 64 channels])ᵀ
__device__ inline void add_products(const char* a_tile, const char* b_tile, int row, int column, float (&sum)[4]) {
  const int lane = threadIdx.x % 32;
  const BlockAddress a_at(device::shared_address(a_tile), true);
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    uint32_t a[4], b[2];
    device::ldmatrix_x4(a, a_at.at(row, k));
    device::ldmatrix_x2(b, device::shared_address(b_tile) + tile_byte(8 * column + lane % 8, 2 * k + lane / 8 % 2));
    device::mma_bf16(sum, a, b);
  }
}

/// Writes the pairs (t, s) and (t, s + 1), s even, into a tile [64, 64]; `transposed`: s is the row.
__device__ inline void put_pair(char* tile, int t, int s, float left, float right, bool transposed) {
  if (!transposed) {
    *reinterpret_cast<uint32_t*>(tile + tile_byte(t, s / 8) + s % 8 * 2) = device::pack_bf16(left, right);
    return;
  }
  *reinterpret_cast<device::bf16*>(tile + tile_byte(s, t / 8) + t % 8 * 2) = device::from_float<device::bf16>(left);
  *reinterpret_cast<device::bf16*>(tile + tile_byte(s + 1, t / 8) + t % 8 * 2) = device::from_float<device::bf16>(right);
}

/// The parts of a chunk's pairs that a warp sums: a [16, 8] of level 32, one of level 16 or 8, and an 8×8 block on the diagonal.
struct PairSums {
  float far[4] = {}, middle[4] = {}, near[2] = {};
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;

  __device__ int far_row() const { return 2 + warp / 4; }
  __device__ int far_column() const { return warp % 4; }
  __device__ int middle_row() const { return warp < 4 ? warp / 2 * 2 + 1 : warp - 4; }
  __device__ int middle_column() const { return warp < 4 ? warp / 2 * 4 + warp % 2 : 2 * (warp - 4); }

  /// Adds what the tile of one level gives; level 0: the diagonal, from q and k.
  __device__ void add(const char* a, const char* b, int level) {
    if (level == 32) add_products(a, b, far_row(), far_column(), far);
    if ((level == 16 && warp < 4) || (level == 8 && warp >= 4)) add_products(a, b, middle_row(), middle_column(), middle);
    if (level >= 8) return;
    float sum[4] = {};
    add_products(a, b, warp / 2, warp, sum);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int t = lane / 4, s = lane % 4 * 2 + i, highest = (t ^ s) & 4 ? 4 : (t ^ s) & 2 ? 2 : t ^ s;
      if (s <= t && highest == level) near[i] += warp % 2 ? sum[2 + i] : sum[i];
    }
  }

  /// Into a tile [64, 64] of zeros.
  __device__ void store(char* tile, float scale, bool transposed) const {
    const auto put = [&](int t, int piece, float left, float right) {
      put_pair(tile, t, 8 * piece + lane % 4 * 2, scale * left, scale * right, transposed);
    };
    put(16 * far_row() + lane / 4, far_column(), far[0], far[1]);
    put(16 * far_row() + lane / 4 + 8, far_column(), far[2], far[3]);
    if (warp < 4) put(16 * middle_row() + lane / 4, middle_column(), middle[0], middle[1]);
    put(16 * middle_row() + lane / 4 + 8, middle_column(), middle[2], middle[3]);
    put(8 * warp + lane / 4, warp, near[0], near[1]);
  }
};

/// q and k of this thread's places, decayed from the chunk's start and to its end, into their tiles.
__device__ inline void decay_tiles(PrepareShared& shared, const Place& place, const Words& q, const Words& k, float scale) {
  each([&](int i, int j) {
    const float2 sum = *reinterpret_cast<const float2*>(&shared.sums[place.row(i)][place.column(j)]);
    const float2 all = *reinterpret_cast<const float2*>(&shared.sums[63][place.column(j)]);
    word_at(shared.q, place, i, j) = scaled_word(q[i][j], {scale * exp2_of(sum.x), scale * exp2_of(sum.y)});
    word_at(shared.k, place, i, j) = scaled_word(k[i][j], {exp2_of(all.x - sum.x), exp2_of(all.y - sum.y)});
  });
}

__global__ void __launch_bounds__(kLevelThreads, 3) prepare(PrepareParams params) {
  extern __shared__ __align__(128) char prepare_memory[];
  PrepareShared& shared = *reinterpret_cast<PrepareShared*>(prepare_memory);
  const Problem& p = params.problem;
  const Piece chunk = piece_of<kChunk>(params.chunks, blockIdx.x);
  if (chunk.count == 0) return;
  const int64_t h = blockIdx.y, stride = p.H * p.K, slot = chunk.slot * p.H + h;
  const int count = static_cast<int>(chunk.count);
  const Place place;
  PairSums pairs;
  for (int64_t column = 0; column < p.K; column += kColumns) {
    const int64_t at = chunk.first * stride + h * p.K + column;
    load_tile(device::shared_address(shared.q), static_cast<const device::bf16*>(p.q) + at, stride, 64, count);
    load_tile(device::shared_address(shared.k), static_cast<const device::bf16*>(p.k) + at, stride, 64, count);
    device::cp_async_commit();
    sum_decays(p, chunk, h, column, shared.sums, shared.totals);
    device::cp_async_wait<0>();
    __syncthreads();
    Words q, k;
    each([&](int i, int j) { q[i][j] = word_at(shared.q, place, i, j), k[i][j] = word_at(shared.k, place, i, j); });
    pairs.add(shared.q, shared.k, 0);
#pragma unroll
    for (int i = kLevels - 1; i >= 0; --i) {
      const int level = 1 << i;
      char* const tile = shared.scaled[i % 2];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const FactorAt at(shared.sums, place, r, level);
        const bool upper = place.is_upper(r, level);
#pragma unroll
        for (int j = 0; j < 4; ++j) word_at(tile, place, r, j) = scaled_word(upper ? q[r][j] : k[r][j], at.factor(j));
      }
      __syncthreads();
      pairs.add(tile, tile, level);
    }
    decay_tiles(shared, place, q, k, p.scale);
    if (threadIdx.x < kColumns) params.decay[slot * p.K + column + threadIdx.x] = exp2_of(shared.sums[63][threadIdx.x]);
    __syncthreads();
    store_tile(shared.q, params.q + at, stride, 64, count);
    store_tile(shared.k, params.k + at, stride, 64, count);
    __syncthreads();
  }
  for (int i = threadIdx.x; i < 512; i += blockDim.x) reinterpret_cast<uint4*>(shared.scaled[0])[i] = {};
  __syncthreads();
  pairs.store(shared.scaled[0], p.scale, params.transposed);
  __syncthreads();
  store_tile(shared.scaled[0], params.pairs + slot * 4096, 64, 64, 64);
}

struct PrepareHeadShared {
  char q[8192], k[8192];
  float sums[64], totals[64];
};

// Decays that a head's channels share: one product of all pairs, decayed afterwards.
__global__ void __launch_bounds__(kLevelThreads, 4) prepare_head(PrepareParams params) {
  __shared__ __align__(128) PrepareHeadShared shared;
  const Problem& p = params.problem;
  const Piece chunk = piece_of<kChunk>(params.chunks, blockIdx.x);
  if (chunk.count == 0) return;
  const int64_t h = blockIdx.y, stride = p.H * p.K, slot = chunk.slot * p.H + h;
  const int count = static_cast<int>(chunk.count);
  const Place place;
  float pairs[4][4] = {};
  for (int64_t column = 0; column < p.K; column += kColumns) {
    const int64_t at = chunk.first * stride + h * p.K + column;
    load_tile(device::shared_address(shared.q), static_cast<const device::bf16*>(p.q) + at, stride, 64, count);
    load_tile(device::shared_address(shared.k), static_cast<const device::bf16*>(p.k) + at, stride, 64, count);
    device::cp_async_commit();
    if (column == 0) sum_head_decays(p, chunk, h, shared.sums, shared.totals);
    device::cp_async_wait<0>();
    __syncthreads();
    add_row_products(shared.q, shared.k, place, pairs);
    __syncthreads();
    each([&](int i, int j) {
      const float sum = shared.sums[place.row(i)], from_start = p.scale * exp2_of(sum), to_end = exp2_of(shared.sums[63] - sum);
      uint32_t &q = word_at(shared.q, place, i, j), &k = word_at(shared.k, place, i, j);
      q = scaled_word(q, {from_start, from_start}), k = scaled_word(k, {to_end, to_end});
    });
    __syncthreads();
    store_tile(shared.q, params.q + at, stride, 64, count);
    store_tile(shared.k, params.k + at, stride, 64, count);
    if (threadIdx.x < kColumns) params.decay[slot * p.K + column + threadIdx.x] = exp2_of(shared.sums[63]);
    __syncthreads();
  }
  each([&](int i, int j) {
    const int t = place.row(i), s = place.column(j);
    const float left = s <= t ? p.scale * exp2_of(shared.sums[t] - shared.sums[s]) * pairs[j][2 * i] : 0.0f;
    const float right = s < t ? p.scale * exp2_of(shared.sums[t] - shared.sums[s + 1]) * pairs[j][2 * i + 1] : 0.0f;
    put_pair(shared.q, t, s, left, right, params.transposed);
  });
  __syncthreads();
  store_tile(shared.q, params.pairs + slot * 4096, 64, 64, 64);
}

}  // namespace

void launch_prepare(Context& ctx, const PrepareParams& params) {
  const bool by_channel = params.problem.decay_key != 0;
  const cuda::LaunchConfig config{.grid = {static_cast<unsigned>(params.chunks.slots), static_cast<unsigned>(params.problem.H)},
                                  .block = kLevelThreads,
                                  .shared_bytes = by_channel ? sizeof(PrepareShared) : 0};
  cuda::launch(ctx.stream(), "gated_linear_attention_prepare", by_channel ? &prepare : &prepare_head, config, params);
}

}  // namespace braid::gla_cuda
