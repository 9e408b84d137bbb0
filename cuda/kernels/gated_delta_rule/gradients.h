// What the gradients of a chunk begin with, for every kind of decay: products of dO, dR and U with the states and with each other. Blocks have a
// chunk and a value head.
//
// d_beta of a token is d_u · e with u = beta e (token form); dR is d_u, so that it is (dR · U) / beta, on the diagonal of dR U^T. (dR · v − k · X is
// the same, but cancels where keys repeat.) Of chunks whose keys repeat U and dR go into products with their rests (`rests`):
// signs may alternate then, and what a bf16 is wrong by is as much as their sums.
#pragma once
#include "cuda/kernels/gated_delta_rule/chunks.h"
#include "cuda/kernels/gated_delta_rule/rest.h"
#include "cuda/kernels/gated_delta_rule/tiles.h"
#include "cuda/runtime/check.h"

namespace braid::delta_cuda {

inline constexpr int kColumns = 32;  // of V at a time
inline constexpr int kTiles = 4;     // n-tiles of a warp: it has 16 tokens and 32 channels
inline constexpr int kValueBytes = kChunk * kColumns * 2, kDr = kValueBytes, kU = 2 * kValueBytes, kState = 3 * kValueBytes;
inline constexpr int kDigitBytes = kChunk * kColumns;
inline constexpr int kStages = 3;

/// `keys` channels of K at a time. A stage: dO, dR, U [64 tokens, 32], S, dS [32, keys], digits of U's rest and of dR's [64, 32].
template <int keys, bool rests>
struct Shape {
  static constexpr int kKeys = keys, kThreads = 4 * keys, kParts = keys / 32;
  static constexpr int kOthers = 8 / kParts;  // n-tiles of other tokens of a warp
  static constexpr int kDState = kState + kColumns * keys * 2, kURest = kDState + kColumns * keys * 2, kDrRest = kURest + kDigitBytes;
  static constexpr int kStageBytes = rests ? kDrRest + kDigitBytes : kURest;
};

__device__ inline float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

/// Element (row, column) and its neighbour of a tile.
template <int width>
__device__ inline float2 pair_of(const unsigned char* tile, int row, int column) {
  const uint32_t pair = *reinterpret_cast<const uint32_t*>(tile + tile_offset<width>(row, column / 8 * 8) + column % 8 * 2);
  return make_float2(device::low_bf16(pair), device::high_bf16(pair));
}

/// Where a block works.
struct Place {
  Chunk chunk;
  int64_t head, lane, row, key_row;  // value head; of [slots, HV], of [N, HV], of [N, H]
  int block, part;                   // of the warp: its tokens, its channels

  __device__ Place(const Problem& p, int64_t slot, int64_t j)
      : chunk(chunk_of(p, slot)), head(j), lane(slot * p.HV + j), row(chunk.first * p.HV + j), key_row(chunk.first * p.H + j / (p.HV / p.H)) {
    const int warp = threadIdx.x / 32;
    block = warp % 4, part = warp / 4;
  }
  /// The first of the thread's two tokens; the other is eight further on.
  __device__ int token() const { return 16 * block + threadIdx.x % 32 / 4; }
};

/// Chunks whose keys repeat have a kernel of their own, of few blocks, because there are few such chunks, or none. body(slot, value head) for the
/// block's share of those, or in the other kernel for the block's chunk, which leaves it if its keys repeat.
inline constexpr unsigned kFewBlocks = 264;
template <bool repeats, class Body>
__device__ inline void each_chunk(const Problem& p, Body&& body) {
  if constexpr (!repeats) {
    return body(blockIdx.x, blockIdx.y);
  }
  const int lanes = static_cast<int>(p.slots * p.HV), step = static_cast<int>(gridDim.x), first = static_cast<int>(blockIdx.x);
  bool any = false;
  for (int64_t lane = first + int64_t{step} * threadIdx.x; lane < lanes; lane += int64_t{step} * blockDim.x) any |= p.repeats[lane] != 0;
  if (!__syncthreads_or(any)) return;
  for (int lane = first; lane < lanes; lane += step) {
    if (!p.repeats[lane]) continue;
    body(lane / p.HV, lane % p.HV);
    __syncthreads();
  }
}

/// What a thread copies of every stage: 16 bytes of S, dS and of dO, dR, U, or with 512 threads of dO and U or of dR; 256 threads digits too.
template <class Shape>
struct StageShare {
  int64_t value, state, digits;  // elements of [N, HV, V] and of [slots, HV, V, K], of column and channel 0
  uint32_t value_to, state_to, digits_to;
  bool live, digits_live;

  __device__ StageShare(const Problem& p, const Place& x) {
    constexpr int kPieces = Shape::kKeys / 8;
    const int row = (Shape::kThreads == 256 ? threadIdx.x : threadIdx.x % 256) / 4, piece = threadIdx.x % 4, column = threadIdx.x / kPieces,
              keys = threadIdx.x % kPieces;
    live = row < x.chunk.count;
    value = (x.row + (live ? row : 0) * p.HV) * p.V + piece * 8, state = (x.lane * p.V + column) * p.K + keys * 8;
    value_to = tile_offset<kColumns>(row, piece * 8), state_to = tile_offset<Shape::kKeys>(column, keys * 8);
    const int digits_row = threadIdx.x % 128 / 2, half = threadIdx.x % 2;
    digits_live = digits_row < x.chunk.count;
    digits = (x.row + (digits_live ? digits_row : 0) * p.HV) * p.V + half * 16;
    digits_to = (threadIdx.x < 128 ? Shape::kURest : Shape::kDrRest) + tile_offset<16>(digits_row, half * 8);
  }
  template <bool rests>
  __device__ void load(const GradientParams& params, int column, int key, uint32_t stage) const {
    const Problem& p = params.backward.problem;
    const bf16* d_o = params.backward.d_o;
    const int64_t at = value + column, state_at = state + column * p.K + key;
    const uint32_t to = stage + value_to;
    const bool all = Shape::kThreads == 256, first = threadIdx.x < 256;
    if (all || first) device::cp_async16(to, (d_o ? d_o : p.u) + at, live && d_o);
    if (all || !first) device::cp_async16(to + kDr, params.backward.d_r + at, live);
    if (all || first) device::cp_async16(to + kU, p.u + at, live);
    device::cp_async16(stage + kState + state_to, p.states + state_at);
    device::cp_async16(stage + Shape::kDState + state_to, params.backward.d_states + state_at);
    if constexpr (rests) {
      const uint8_t* from = threadIdx.x < 128 ? p.u_rest : params.backward.d_r_rest;
      if (all || first) device::cp_async16(stage + digits_to, from + digits + column, digits_live);
    }
  }
};

/// lane_offset of the part's 32 channels in a tile of rows of channels.
template <class Shape>
__device__ inline uint32_t channels_offset(const Place& place) {
  const uint32_t lane = lane_offset<Shape::kKeys, false>();
  return Shape::kParts == 2 ? lane ^ (place.part * 64) : (lane ^ (place.part % 2 * 64)) + place.part / 2 * 128;
}

template <int tiles>
__device__ inline void clear(float (&c)[tiles][4]) {
#pragma unroll
  for (int n = 0; n < tiles; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) c[n][i] = 0;
}

/// y += dO S^T, x += dR S^T, z += U dS^T over a stage, [16 tokens, 32 channels]; squares: d_p += dO U^T, d_m += dR U^T.
template <class Shape, bool rests>
__device__ inline void add_stage(float (&y)[kTiles][4], float (&x)[kTiles][4], float (&z)[kTiles][4], float (&d_p)[Shape::kOthers][4],
                                 float (&d_m)[Shape::kOthers][4], uint32_t stage, const Place& place, bool squares) {
  const uint32_t rows = lane_offset<kColumns, false>() + place.block * 16 * kColumns * 2;
  const uint32_t others = lane_offset<kColumns, true>() + place.part * (Shape::kOthers * 8) * kColumns * 2;
  const uint32_t states = channels_offset<Shape>(place), digits = lane_offset<16, false>();
  uint32_t r_digits[4];
  if constexpr (rests) device::ldmatrix_x4(r_digits, stage + Shape::kDrRest + digits + place.block * 16 * kColumns);
#pragma unroll
  for (int c = 0; c < kColumns; c += 16) {
    uint32_t d_o[4], d_r[4], r_rest[4], b[4];
    device::ldmatrix_x4(d_o, stage + block_at<kColumns>(rows, 0, c));
    device::ldmatrix_x4(d_r, stage + kDr + block_at<kColumns>(rows, 0, c));
    if constexpr (rests) rest_of_rows(r_rest, d_r, r_digits[c / 8], r_digits[c / 8 + 1]);
    if (squares) {
#pragma unroll
      for (int n = 0; n < Shape::kOthers; n += 2) {
        if (place.part * (Shape::kOthers / 2) + n / 2 > place.block) continue;
        device::ldmatrix_x4(b, stage + kU + block_at<kColumns>(others, 8 * n, c));
        mma_two(d_p[n], d_p[n + 1], d_o, b);
        mma_two(d_m[n], d_m[n + 1], d_r, b);
        if constexpr (rests) mma_two(d_m[n], d_m[n + 1], r_rest, b);
        if constexpr (!rests) continue;
        uint32_t u_digits[4];
        device::ldmatrix_x4(u_digits, stage + Shape::kURest + digits + (place.part * Shape::kOthers + n) * 8 * kColumns);
        rest_of_others(b, u_digits[c / 8], u_digits[c / 8 + 1]);
        mma_two(d_p[n], d_p[n + 1], d_o, b);
        mma_two(d_m[n], d_m[n + 1], d_r, b);
      }
    }
#pragma unroll
    for (int n = 0; n < kTiles; n += 2) {
      device::ldmatrix_x4_transposed(b, stage + kState + block_at<Shape::kKeys>(states, c, 8 * n));
      mma_two(y[n], y[n + 1], d_o, b);
      mma_two(x[n], x[n + 1], d_r, b);
      if constexpr (rests) mma_two(x[n], x[n + 1], r_rest, b);
    }
  }
  uint32_t u_digits[4];
  if constexpr (rests) device::ldmatrix_x4(u_digits, stage + Shape::kURest + digits + place.block * 16 * kColumns);
#pragma unroll
  for (int c = 0; c < kColumns; c += 16) {
    uint32_t u[4], rest[4], b[4];
    device::ldmatrix_x4(u, stage + kU + block_at<kColumns>(rows, 0, c));
    if constexpr (rests) rest_of_rows(rest, u, u_digits[c / 8], u_digits[c / 8 + 1]);
#pragma unroll
    for (int n = 0; n < kTiles; n += 2) {
      device::ldmatrix_x4_transposed(b, stage + Shape::kDState + block_at<Shape::kKeys>(states, c, 8 * n));
      mma_two(z[n], z[n + 1], u, b);
      if constexpr (rests) mma_two(z[n], z[n + 1], rest, b);
    }
  }
}

/// What a token wrote, and with it the gradient of its key, is nothing: 1 or 0.
__device__ inline float wrote(float beta) { return fabsf(beta) < kLeastBeta ? 0.0f : 1.0f; }

/// The sum of products of the eight elements at `at` of two tiles.
__device__ inline float dot_pieces(const unsigned char* a, const unsigned char* b) {
  const uint4 x = *reinterpret_cast<const uint4*>(a + threadIdx.x * 16), y = *reinterpret_cast<const uint4*>(b + threadIdx.x * 16);
  float sum = 0;
  const auto add = [&](uint32_t s, uint32_t t) { sum += device::low_bf16(s) * device::low_bf16(t) + device::high_bf16(s) * device::high_bf16(t); };
  add(x.x, y.x), add(x.y, y.y), add(x.z, y.z), add(x.w, y.w);
  return sum;
}

}  // namespace braid::delta_cuda
