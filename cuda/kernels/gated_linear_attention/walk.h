// The walk of a state over the chunks of a segment (WalkParams, cut.h). Device code.
//
// A block owns kTile rows of M of one segment and head; a warp owns 16 of them and all C columns (half of them when C = 512), in
// float32, as accumulators of mma. Rounded to bf16 they are, as they lie, the a operand of out = state · across. The products
// themselves are in walk_warp.h and walk_warpgroup.h.
#pragma once
#include "cuda/kernels/gated_linear_attention/tiles.h"
#include "cuda/kernels/gated_linear_attention/walk_shared.h"
#include "cuda/runtime/check.h"

namespace braid::gla_cuda {

template <Walk mode, int C, int threads>
struct Walker {
  static constexpr int kParts = C > 256 ? 2 : 1, kColumns = C / kParts, kTile = threads / 32 / kParts * 16, kStages = kDeviceStages<C>;
  static constexpr WalkShared shared{mode, C, kTile, kStages};
  using Accumulators = float[kColumns / 8][4];
  using Out = float[8][4];  // [16 rows, 64 tokens]

  const WalkParams& params;
  char* const memory;
  char* inputs;                   // the stage of the chunk at hand
  const int lane, part, row;      // row: the warp's first one in the block's tile
  const int64_t h, M, first_row;  // first_row: the block's in M

  __device__ Walker(const WalkParams& params, char* memory, const Block& block)
      : params(params),
        memory(memory),
        inputs(memory),
        lane(threadIdx.x % 32),
        part(threadIdx.x / (2 * kTile)),
        row(threadIdx.x / 32 % (kTile / 16) * 16),
        h(block.h),
        M(mode == Walk::keys ? params.problem.K : params.problem.V),
        first_row(block.tile * kTile) {}

  /// body(accumulator, its place in a state [K, V])
  template <class Body>
  __device__ void each_element(Accumulators& state, Body&& body) const {
#pragma unroll
    for (int j = 0; j < kColumns / 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int64_t m = first_row + row + lane / 4 + i / 2 * 8, c = part * kColumns + 8 * j + lane % 4 * 2 + i % 2;
        body(state[j][i], mode == Walk::keys ? m * C + c : c * M + m);
      }
  }

  /// Of the i-th chunk on the way.
  __device__ char* stage(int64_t i) const { return memory + (kStages == 2 ? i % 2 * shared.stage : 0); }

  __device__ void load_across(char* to, int64_t first, int count) const {
    const int64_t H = params.problem.H;
    load_tile<C, threads>(device::shared_address(to + shared.across), params.across + (first * H + h) * C, H * C, count);
  }
  __device__ void load_update(char* to, int64_t first, int count, int64_t chunk) const {
    const int64_t H = params.problem.H, K = params.problem.K;
    const uint32_t base = device::shared_address(to);
    load_tile<C, threads>(base + shared.columns, params.columns + (first * H + h) * C, H * C, count);
    load_tile<kTile, threads>(base + shared.rows, params.rows + (first * H + h) * M + first_row, H * M, count);
    if constexpr (adds_pairs(mode)) load_tile<64, threads>(base + shared.pairs, params.pairs + (chunk * H + h) * 4096, 64, 64);
    const float* decay = params.decay + (chunk * H + h) * K + (mode == Walk::keys ? first_row : 0);
    for (int i = threadIdx.x; i < (mode == Walk::keys ? kTile : C) / 4; i += threads) device::cp_async16(base + shared.decay + 16 * i, decay + 4 * i);
    if (params.factors && threadIdx.x < 32) {
      const int row_kind = params.reverse ? 2 : 3, out_kind = params.reverse ? 1 : 0;
      const float* const factors = params.factors + (chunk * H + h) * 256 + 64 * (threadIdx.x < 16 ? row_kind : out_kind);
      device::cp_async16(base + shared.factors + 16 * threadIdx.x, factors + threadIdx.x % 16 * 4);
    }
  }

  /// Step k's a operand of out = state · across.
  __device__ static void operand(const Accumulators& state, int k, uint32_t (&a)[4]) {
    const float(&left)[4] = state[2 * k], (&right)[4] = state[2 * k + 1];
    a[0] = device::pack_bf16(left[0], left[1]), a[1] = device::pack_bf16(left[2], left[3]);
    a[2] = device::pack_bf16(right[0], right[1]), a[3] = device::pack_bf16(right[2], right[3]);
  }

  /// Keeps the state before a chunk; in reverse, multiplies the kept one with this one: spanning[i] sums the rows lane / 4 + 8 i.
  __device__ void keep(const Accumulators& state, int64_t chunk, float (&spanning)[2]) const {
    const int64_t warp = (chunk * params.problem.H + h) * (M / 16 * kParts) + first_row / kTile * (threads / 32) + threadIdx.x / 32;
    uint4* const kept = params.kept + warp * (kColumns / 16 * 32) + lane;
#pragma unroll
    for (int k = 0; k < kColumns / 16; ++k) {
      if (params.reverse) {
        const float(&left)[4] = state[2 * k], (&right)[4] = state[2 * k + 1];
        const uint4 other = kept[32 * k];
        spanning[0] += left[0] * device::low_bf16(other.x) + left[1] * device::high_bf16(other.x) + right[0] * device::low_bf16(other.z) +
                       right[1] * device::high_bf16(other.z);
        spanning[1] += left[2] * device::low_bf16(other.y) + left[3] * device::high_bf16(other.y) + right[2] * device::low_bf16(other.w) +
                       right[3] * device::high_bf16(other.w);
      } else {
        uint32_t a[4];
        operand(state, k, a);
        kept[32 * k] = {a[0], a[1], a[2], a[3]};
      }
    }
  }

  /// The a operands of the update, 16 tokens each.
  __device__ void load_rows(uint32_t (&rows)[4][4]) const {
    const BlockAddress at(device::shared_address(inputs + shared.rows), false);
#pragma unroll
    for (int k = 0; k < 4; ++k) device::ldmatrix_x4_transposed(rows[k], at.at(k, row / 16));
  }

  /// Of state · across, for two neighbouring tokens, the first of them even.
  __device__ float2 out_factors(int token) const { return *reinterpret_cast<const float2*>(inputs + shared.factors + 256 + 4 * token); }

  /// Multiplies the rows of the update with their factors, where they have such; each product is rounded once.
  __device__ void decay_rows(uint32_t (&rows)[4][4]) const {
    if (!params.factors) return;
#pragma unroll
    for (int k = 0; k < 4; ++k)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint2 factors = *reinterpret_cast<const uint2*>(inputs + shared.factors + 4 * (16 * k + 8 * half + lane % 4 * 2));
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          uint32_t& row = rows[k][2 * half + i];
          row = fma_words(row, factors.x, fma_words(row, factors.y, 0x80008000u));
        }
      }
  }
  /// The same of state · across.
  __device__ void decay_out(Out& out) const {
    if constexpr (adds_pairs(mode)) {
      if (!params.factors) return;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float2 factors = out_factors(8 * j + lane % 4 * 2);
        out[j][0] *= factors.x, out[j][1] *= factors.y, out[j][2] *= factors.x, out[j][3] *= factors.y;
      }
    }
  }

  __device__ void decay(Accumulators& state) const {
    const float* const decay = reinterpret_cast<const float*>(inputs + shared.decay);
#pragma unroll
    for (int j = 0; j < kColumns / 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        state[j][i] *= decay[mode == Walk::keys ? row + lane / 4 + i / 2 * 8 : part * kColumns + 8 * j + lane % 4 * 2 + i % 2];
  }

  /// Where the second of two parts leaves its share of the warp's out.
  __device__ float* partial() const { return reinterpret_cast<float*>(memory + shared.partial) + row * 64 + lane; }

  /// Of two parts, the second leaves its share, the first waits for a barrier and takes it.
  __device__ void give_part(const Out& out) const {
    if constexpr (kParts == 2) {
      if (part == 0) return;
#pragma unroll
      for (int j = 0; j < 32; ++j) partial()[32 * j] = out[j / 4][j % 4];
    }
  }

  /// Adds the other part's share and writes the warp's rows into the tile `out`.
  __device__ void stage_out(Out& out) const {
    if constexpr (kParts == 2) {
      if (part == 1) return;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float2 factors = adds_pairs(mode) && params.factors ? out_factors(8 * j + lane % 4 * 2) : float2{1, 1};
#pragma unroll
        for (int i = 0; i < 4; ++i) out[j][i] += (i % 2 ? factors.y : factors.x) * partial()[32 * (4 * j + i)];
      }
    }
    char* const to = memory + shared.out;
#pragma unroll
    for (int j = 0; j < 8; ++j)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint32_t turned = device::transposed_8x8(device::pack_bf16(out[j][2 * i], out[j][2 * i + 1]));
        *reinterpret_cast<uint32_t*>(to + tile_byte(8 * j + lane / 4, row / 8 + i) + lane % 4 * 4) = turned;
      }
  }

  /// spanning[i] of the rows lane / 4 + 8 i: the sum over the columns, times the chunk's decay.
  __device__ void store_spanning(const float (&spanning)[2], int64_t chunk) const {
    const int64_t H = params.problem.H;
    float* const to = params.spanning + ((part * params.num_chunk_slots + chunk) * H + h) * M + first_row + row;
    const float* const decay = reinterpret_cast<const float*>(inputs + shared.decay) + row;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float sum = spanning[i] + __shfl_xor_sync(0xffffffffu, spanning[i], 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      if (lane % 4 == 0) to[lane / 4 + 8 * i] = sum * decay[lane / 4 + 8 * i];
    }
  }
};

}  // namespace braid::gla_cuda
