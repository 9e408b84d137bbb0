// The gradients of q, k and decays per key channel of each chunk, one block a chunk and head: what the walks found across chunks, and the pairs of
// the chunk's own tokens.
//
// With P_ts = scale d_o_t · v_s, and M the symmetric matrix of its values off the diagonal, one product a level (levels.h) serves q and k:
// product = M scaled; d_q_t += exp(G_t - G_m) product_t in upper halves, d_k_t += exp(G_m - G_t) product_t in lower ones.
// d_log_decay_t sums over all pairs s < t' with s < t ≤ t': those across chunks without any subtraction; those of this chunk as a sum over
// tokens from t on of ±scaled product, in which pairs beyond t cancel exactly but for float32: both their terms are the same number.
#include "cuda/kernels/gated_linear_attention/finish.h"

namespace braid::gla_cuda {
namespace {

struct FinishShared {
  char mixed[8192];     // M
  char tiles[4][8192];  // q, k, across_q, across_k; before: slices of d_o and v by turns
  char scaled[2][8192];
  float sums[64][kSumStride];      // of log decays; then by token, what d_log_decay sums from a token on
  float key_sums[64][kSumStride];  // what it sums up to a token
  float totals[8 * kColumns];
  float diagonal[64];
};

/// product += M scaled over the pairs of `level`, for this warp's 16 tokens and 32 channels.
__device__ inline void add_mixed(const FinishShared& shared, const char* scaled, const Place& place, int level, float (&product)[4][4]) {
  const BlockAddress mixed(device::shared_address(shared.mixed), true), columns(device::shared_address(scaled), true);
  const int row = place.lane / 4, column = place.lane % 4 * 2;
#pragma unroll 1
  for (int k = 0; k < (level == 32 ? 2 : 1); ++k) {
    const int other = level == 32 ? ((place.band & 2) ^ 2) + k : level == 16 ? place.band ^ 1 : place.band;
    uint32_t a[4];
    device::ldmatrix_x4(a, mixed.at(place.band, other));
    if (level == 8) a[0] = a[3] = 0;
    if (level < 8) {
      const int far = (row ^ column) & 6;  // all but the lowest bit of the distance, that of two neighbouring columns
      const uint32_t mask = level == 1 ? (far ? 0 : row & 1 ? 0xffffu : 0xffff0000u) : (level == 4 ? far & 4 : far == 2) ? ~0u : 0u;
      a[1] = a[2] = 0, a[0] &= mask, a[3] &= mask;
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      uint32_t b[4];
      device::ldmatrix_x4_transposed(b, columns.at(other, 2 * place.half + j));
      device::mma_bf16(product[2 * j], a, {b[0], b[1]});
      device::mma_bf16(product[2 * j + 1], a, {b[2], b[3]});
    }
  }
}

/// The gradients of a thread's places in one slice of 64 channels.
struct Gradients {
  Pairs q, k, from;  // from: what d_log_decay sums over tokens from its own on

  /// From across the chunk's borders, and the diagonal.
  __device__ void begin(FinishShared& shared, const Place& place, float scale) {
    each([&](int i, int j) {
      const int t = place.row(i), c = place.column(j);
      const float2 sum = *reinterpret_cast<const float2*>(&shared.sums[t][c]), all = *reinterpret_cast<const float2*>(&shared.sums[63][c]);
      const uint32_t q_word = word_at(shared.tiles[0], place, i, j), k_word = word_at(shared.tiles[1], place, i, j);
      const uint32_t x = word_at(shared.tiles[2], place, i, j), y = word_at(shared.tiles[3], place, i, j);
      const float2 q_at = {device::low_bf16(q_word), device::high_bf16(q_word)}, k_at = {device::low_bf16(k_word), device::high_bf16(k_word)};
      q[i][j] = {scale * exp2_of(sum.x) * device::low_bf16(x), scale * exp2_of(sum.y) * device::high_bf16(x)};
      k[i][j] = {exp2_of(all.x - sum.x) * device::low_bf16(y), exp2_of(all.y - sum.y) * device::high_bf16(y)};
      from[i][j] = {q_at.x * q[i][j].x, q_at.y * q[i][j].y};
      *reinterpret_cast<float2*>(&shared.key_sums[t][c]) = {k_at.x * k[i][j].x, k_at.y * k[i][j].y};
      const float diagonal = shared.diagonal[t];
      q[i][j].x += diagonal * k_at.x, q[i][j].y += diagonal * k_at.y;
      k[i][j].x += diagonal * q_at.x, k[i][j].y += diagonal * q_at.y;
    });
  }

  __device__ void add_level(FinishShared& shared, const Place& place, int level) {
    char* const tile = shared.scaled[level & 0x15 ? 0 : 1];
    Pairs factor;
    Words scaled;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const FactorAt at(shared.sums, place, i, level);
      const char* const from_tile = shared.tiles[place.is_upper(i, level) ? 0 : 1];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        factor[i][j] = at.factor(j);
        scaled[i][j] = scaled_word(*reinterpret_cast<const uint32_t*>(from_tile + place.byte(i, j)), factor[i][j]);
        word_at(tile, place, i, j) = scaled[i][j];
      }
    }
    __syncthreads();
    float product[4][4] = {};
    add_mixed(shared, tile, place, level, product);
    each([&](int i, int j) {
      const float left = product[j][2 * i], right = product[j][2 * i + 1];
      const float to_q = place.is_upper(i, level) ? 1.0f : 0.0f, to_k = 1 - to_q, sign = to_q - to_k;
      q[i][j].x += to_q * (factor[i][j].x * left), q[i][j].y += to_q * (factor[i][j].y * right);
      k[i][j].x += to_k * (factor[i][j].x * left), k[i][j].y += to_k * (factor[i][j].y * right);
      from[i][j].x += sign * device::low_bf16(scaled[i][j]) * left, from[i][j].y += sign * device::high_bf16(scaled[i][j]) * right;
    });
  }

  /// After the last level's products: q and k as bf16 into their tiles, `from` over the sums.
  __device__ void store(FinishShared& shared, const Place& place) const {
    each([&](int i, int j) {
      word_at(shared.tiles[0], place, i, j) = device::pack_bf16(q[i][j].x, q[i][j].y);
      word_at(shared.tiles[1], place, i, j) = device::pack_bf16(k[i][j].x, k[i][j].y);
      *reinterpret_cast<float2*>(&shared.sums[place.row(i)][place.column(j)]) = from[i][j];
    });
  }
};

/// d_log_decay of a slice: channel c, 16 tokens a thread.
__device__ inline void store_decays(const FinishParams& params, const Piece& chunk, int64_t h, int64_t column, FinishShared& shared) {
  const Problem& p = params.problem;
  const int c = threadIdx.x % kColumns, group = threadIdx.x / kColumns;
  float from[16], up_to[16], from_all = 0, up_to_all = 0;
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    from[i] = shared.sums[16 * group + i][c], up_to[i] = shared.key_sums[16 * group + i][c];
    from_all += from[i], up_to_all += up_to[i];
  }
  shared.totals[threadIdx.x] = from_all, shared.totals[256 + threadIdx.x] = up_to_all;
  __syncthreads();
  float before = spanning_at(params, (chunk.slot * p.H + h) * p.K + column + c), after = 0;
  for (int i = 0; i < group; ++i) before += shared.totals[256 + i * kColumns + c];
  for (int i = 3; i > group; --i) after += shared.totals[i * kColumns + c];
#pragma unroll
  for (int i = 15; i >= 0; --i) from[i] = after += from[i];
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    const int64_t t = 16 * group + i;
    if (t < chunk.count) store_decay(params, ((chunk.first + t) * p.H + h) * p.K + column + c, before + from[i]);
    before += up_to[i];
  }
}

__global__ void __launch_bounds__(kLevelThreads, 2) finish(FinishParams params) {
  extern __shared__ __align__(128) char finish_memory[];
  FinishShared& shared = *reinterpret_cast<FinishShared*>(finish_memory);
  const Problem& p = params.problem;
  const Piece chunk = piece_of<kChunk>(params.chunks, blockIdx.x);
  if (chunk.count == 0) return;
  const int64_t h = blockIdx.y, stride = p.H * p.K;
  const int count = static_cast<int>(chunk.count);
  const Place place;
  mix(params, chunk, h, shared.tiles, shared.mixed, shared.diagonal, [](int, int) { return 1.0f; });
  for (int64_t column = 0; column < p.K; column += kColumns) {
    const int64_t at = chunk.first * stride + h * p.K + column;
    const device::bf16* const from[4] = {static_cast<const device::bf16*>(p.q), static_cast<const device::bf16*>(p.k), params.across_q,
                                         params.across_k};
    for (int i = 0; i < 4; ++i) load_tile(device::shared_address(shared.tiles[i]), from[i] + at, stride, 64, count);
    device::cp_async_commit();
    sum_decays(p, chunk, h, column, shared.sums, shared.totals);
    device::cp_async_wait<0>();
    __syncthreads();
    Gradients gradients;
    gradients.begin(shared, place, p.scale);
#pragma unroll 1  // unrolled, the levels' registers would not fit
    for (int level = 32; level > 0; level /= 2) gradients.add_level(shared, place, level);
    gradients.store(shared, place);
    __syncthreads();
    if (params.d_q) store_tile(shared.tiles[0], params.d_q + at, stride, 64, count);
    if (params.d_k) store_tile(shared.tiles[1], params.d_k + at, stride, 64, count);
    if (params.d_decay) store_decays(params, chunk, h, column, shared);
    __syncthreads();
  }
}

}  // namespace

void launch_finish_channel(Context& ctx, const FinishParams& params) {
  const cuda::LaunchConfig config{.grid = {static_cast<unsigned>(params.chunks.slots), static_cast<unsigned>(params.problem.H)},
                                  .block = kLevelThreads,
                                  .shared_bytes = sizeof(FinishShared)};
  cuda::launch(ctx.stream(), "gated_linear_attention_finish", &finish, config, params);
}

}  // namespace braid::gla_cuda
