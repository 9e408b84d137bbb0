// The gradients of q, k and decays that a head's channels share, of each chunk, one block a chunk and head: what the walks found across
// chunks, and the pairs of the chunk's own tokens, all at once: d_q_t += Σ_s M_ts k_s (s < t), d_k_s += Σ_t M_ts q_t.
#include "cuda/kernels/gated_linear_attention/finish.h"

namespace braid::gla_cuda {
namespace {

struct FinishHeadShared {
  char mixed[8192];
  char tiles[2][4][8192];  // by turns: q, k, across_q, across_k; before: slices of d_o and v
  float sums[64], diagonal[64];
  float from[2][64], up_to[2][64];  // by half of the channels: what d_log_decay sums over tokens from one on, and up to one
  float spanning[8];
};

/// q += (M below the diagonal) · k, k += (M above it) · q, for this warp's 16 tokens and 32 channels.
__device__ inline void add_pairs(const char* mixed_tile, const char (*tiles)[8192], const TilePlace& place, float (&q)[4][4], float (&k)[4][4]) {
  const BlockAddress mixed(device::shared_address(mixed_tile), true);
  const BlockAddress q_at(device::shared_address(tiles[0]), true), k_at(device::shared_address(tiles[1]), true);
  const int row = place.lane / 4, column = place.lane % 4 * 2;
  const uint32_t below = (column < row ? 0xffffu : 0) | (column + 1 < row ? 0xffff0000u : 0);
  for (int i = 0; i < 4; ++i) {
    uint32_t a[4];
    device::ldmatrix_x4(a, mixed.at(place.band, i));
    const uint32_t lower = i < place.band ? ~0u : i > place.band ? 0u : below, left = i <= place.band ? ~0u : 0, right = i < place.band ? ~0u : 0;
    const uint32_t to_q[4] = {a[0] & lower, a[1] & left, a[2] & right, a[3] & lower};
    const uint32_t to_k[4] = {a[0] & ~lower, a[1] & ~left, a[2] & ~right, a[3] & ~lower};
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      uint32_t b[4];
      if (i <= place.band) {
        device::ldmatrix_x4_transposed(b, k_at.at(i, 2 * place.half + j));
        device::mma_bf16(q[2 * j], to_q, {b[0], b[1]});
        device::mma_bf16(q[2 * j + 1], to_q, {b[2], b[3]});
      }
      if (i >= place.band) {
        device::ldmatrix_x4_transposed(b, q_at.at(i, 2 * place.half + j));
        device::mma_bf16(k[2 * j], to_k, {b[0], b[1]});
        device::mma_bf16(k[2 * j + 1], to_k, {b[2], b[3]});
      }
    }
  }
}

/// What one slice gives of d_log_decay's sums, per token of this thread.
struct DecaySums {
  float from[2] = {}, up_to[2] = {};
};

/// The gradients of a thread's places in one slice, as words for the tiles.
__device__ inline void add_across(FinishHeadShared& shared, char (*tiles)[8192], const TilePlace& place, float scale, const float (&q_sum)[4][4],
                                  const float (&k_sum)[4][4], Words& d_q, Words& d_k, DecaySums& decays) {
  TilePlace::each([&](int i, int j) {
    const int t = place.row(i);
    const float sum = shared.sums[t], from_start = scale * device::fast_exp2(sum), to_end = device::fast_exp2(shared.sums[63] - sum),
                diagonal = shared.diagonal[t];
    const uint32_t q = place.word(tiles[0], i, j), k = place.word(tiles[1], i, j);
    const uint32_t x = place.word(tiles[2], i, j), y = place.word(tiles[3], i, j);
    const float2 q_at = {device::low_bf16(q), device::high_bf16(q)}, k_at = {device::low_bf16(k), device::high_bf16(k)};
    const float2 q_far = {from_start * device::low_bf16(x), from_start * device::high_bf16(x)};
    const float2 k_far = {to_end * device::low_bf16(y), to_end * device::high_bf16(y)};
    const float2 q_near = {q_sum[j][2 * i], q_sum[j][2 * i + 1]}, k_near = {k_sum[j][2 * i], k_sum[j][2 * i + 1]};
    d_q[i][j] = device::pack_bf16(q_far.x + q_near.x + diagonal * k_at.x, q_far.y + q_near.y + diagonal * k_at.y);
    d_k[i][j] = device::pack_bf16(k_far.x + k_near.x + diagonal * q_at.x, k_far.y + k_near.y + diagonal * q_at.y);
    decays.from[i] += q_at.x * (q_far.x + q_near.x) - k_at.x * k_near.x + q_at.y * (q_far.y + q_near.y) - k_at.y * k_near.y;
    decays.up_to[i] += k_at.x * k_far.x + k_at.y * k_far.y;
  });
}

/// d_log_decay of a chunk and head: one token a thread, each sum in order. Every thread must call it.
__device__ inline void store_decays(const FinishParams& params, const Piece& chunk, int64_t h, FinishHeadShared& shared, const TilePlace& place,
                                    const DecaySums& sums) {
  const int64_t K = params.problem.K, H = params.problem.H;
  float spanning = 0;
  for (int64_t key = threadIdx.x; key < K; key += blockDim.x) spanning += spanning_at(params, (chunk.slot * H + h) * K + key);
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) spanning += __shfl_xor_sync(0xffffffffu, spanning, offset);
  if (place.lane == 0) shared.spanning[threadIdx.x / 32] = spanning;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float from = sums.from[i], up_to = sums.up_to[i];
#pragma unroll
    for (int offset = 1; offset < 4; offset *= 2)
      from += __shfl_xor_sync(0xffffffffu, from, offset), up_to += __shfl_xor_sync(0xffffffffu, up_to, offset);
    if (place.lane % 4 == 0) shared.from[place.half][place.row(i)] = from, shared.up_to[place.half][place.row(i)] = up_to;
  }
  __syncthreads();
  const int t = threadIdx.x;
  if (t >= chunk.count) return;
  float sum = 0, after = 0;
  for (int i = 0; i < 8; ++i) sum += shared.spanning[i];
  for (int i = 0; i < t; ++i) sum += shared.up_to[0][i] + shared.up_to[1][i];
  for (int i = 63; i >= t; --i) after += shared.from[0][i] + shared.from[1][i];
  store_decay(params, (chunk.first + t) * H + h, sum + after);
}

__global__ void __launch_bounds__(device::kTileThreads, 3) finish_head(FinishParams params) {
  extern __shared__ __align__(128) char finish_memory[];
  FinishHeadShared& shared = *reinterpret_cast<FinishHeadShared*>(finish_memory);
  const Problem& p = params.problem;
  const Block block = block_of(p.H);
  const Piece chunk = piece_of<kChunk>(params.chunks, block.slot);
  if (chunk.count == 0) return;
  const int64_t h = block.h, stride = p.H * p.K, first = chunk.first * stride + h * p.K;
  const int count = static_cast<int>(chunk.count);
  const TilePlace place;
  DecaySums decays;
  const auto load = [&](int64_t column) {
    const device::bf16* const from[4] = {static_cast<const device::bf16*>(p.q), static_cast<const device::bf16*>(p.k), params.across_q,
                                         params.across_k};
    for (int i = 0; i < 4; ++i)
      load_tile<64, device::kTileThreads>(device::shared_address(shared.tiles[column / kColumns % 2][i]), from[i] + first + column, stride, count);
    device::cp_async_commit();
  };
  load(0);
  sum_head_decays(p, chunk, h, shared.sums, shared.from[0]);
  mix(params, chunk, h, shared.tiles[1], shared.mixed, shared.diagonal,
      [&](int t, int s) { return device::fast_exp2(shared.sums[t] - shared.sums[s]); });
  for (int64_t column = 0; column < p.K; column += kColumns) {
    char(*const tiles)[8192] = shared.tiles[column / kColumns % 2];
    device::cp_async_wait<0>();
    __syncthreads();
    if (column + kColumns < p.K) load(column + kColumns);
    float q_sum[4][4] = {}, k_sum[4][4] = {};
    add_pairs(shared.mixed, tiles, place, q_sum, k_sum);
    Words d_q, d_k;
    add_across(shared, tiles, place, p.scale, q_sum, k_sum, d_q, d_k, decays);
    __syncthreads();
    TilePlace::each([&](int i, int j) { place.word(tiles[0], i, j) = d_q[i][j], place.word(tiles[1], i, j) = d_k[i][j]; });
    __syncthreads();
    if (params.d_q) store_tile<64, device::kTileThreads>(tiles[0], params.d_q + first + column, stride, count);
    if (params.d_k) store_tile<64, device::kTileThreads>(tiles[1], params.d_k + first + column, stride, count);
  }
  if (params.d_decay) store_decays(params, chunk, h, shared, place, decays);
}

}  // namespace

void launch_finish_head(Context& ctx, const FinishParams& params) {
  const cuda::LaunchConfig config{
      .grid = grid_of(params.chunks.slots, params.problem.H), .block = device::kTileThreads, .shared_bytes = sizeof(FinishHeadShared)};
  cuda::launch(ctx.stream(), "gated_linear_attention_finish", &finish_head, config, params);
}

}  // namespace braid::gla_cuda
