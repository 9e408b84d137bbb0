// The kernel around Walker, and its launch. Device code.
#pragma once
#include "cuda/kernels/gated_linear_attention/walk.h"

namespace braid::gla_cuda {

/// The state at the end of the walk, where it is wanted, and the product of a segment's decays.
template <Walk mode, int C>
__device__ inline void store_end(const Walker<mode, C>& walker, const Piece& piece, typename Walker<mode, C>::Accumulators& state) {
  const WalkParams& params = walker.params;
  const int64_t H = params.problem.H, K = params.problem.K, KV = K * params.problem.V;
  if (mode != Walk::local && !(params.last && (params.reverse ? piece.is_first : piece.is_last))) return;
  float* const to = params.last + ((mode == Walk::local ? piece.slot : piece.sequence) * H + walker.h) * KV;
  walker.each_element(state, [&](float x, int64_t at) { to[at] = x; });
  if constexpr (mode == Walk::local) {
    if (blockIdx.z != 0) return;
    for (int64_t k = threadIdx.x; k < K; k += blockDim.x) {
      float product = 1;
      for (int64_t c = 0; c < piece.num_chunks; ++c) product *= params.decay[((piece.first_chunk + c) * H + walker.h) * K + k];
      params.segment_decay[(piece.slot * H + walker.h) * K + k] = product;
    }
  }
}

// Two halves of a chunk overlap with the copies for each other: while the state is multiplied with `across`, the operands of the update
// arrive; while the state is updated, the next chunk's `across` arrives.
template <Walk mode, int C>
__global__ void __launch_bounds__(256, C <= 128 ? 2 : 1) walk(WalkParams params) {
  extern __shared__ __align__(128) char walk_memory[];
  const Walker<mode, C> walker(params, walk_memory);
  constexpr bool has_out = mode != Walk::local;
  const Piece piece = piece_of(params.segments, blockIdx.x);
  const int64_t H = params.problem.H, KV = params.problem.K * params.problem.V;
  if (mode == Walk::local ? (params.reverse ? piece.is_first : piece.is_last) || piece.count == 0 : piece.count == 0 && !piece.is_last) return;
  const auto chunk_at = [&](int64_t i) { return params.reverse ? piece.num_chunks - 1 - i : i; };
  const auto count_of = [&](int64_t c) { return static_cast<int>(min(int64_t{kChunk}, piece.count - c * kChunk)); };
  const auto begin_across = [&](int64_t i) {
    if (has_out && i < piece.num_chunks) walker.load_across(piece.first + chunk_at(i) * kChunk, count_of(chunk_at(i)));
    device::cp_async_commit();
  };
  const auto begin_update = [&](int64_t i) {
    if (i < piece.num_chunks) walker.load_update(piece.first + chunk_at(i) * kChunk, count_of(chunk_at(i)), piece.first_chunk + chunk_at(i));
    device::cp_async_commit();
  };
  begin_across(0);
  begin_update(0);
  float state[Walker<mode, C>::kColumns / 8][4];
  const float* const before = params.states ? params.states + (piece.slot * H + walker.h) * KV : nullptr;
  walker.each_element(state, [&](float& x, int64_t at) { x = has_out && before ? before[at] : 0.0f; });
  for (int64_t i = 0; i < piece.num_chunks; ++i) {
    const int64_t c = chunk_at(i), chunk = piece.first_chunk + c;
    float out[8][4] = {}, spanning[2] = {};
    device::cp_async_wait<1>();
    __syncthreads();
    if constexpr (has_out) walker.contract(state, out, chunk, spanning);
    if (has_out && walker.kParts == 2 && walker.part == 1)
#pragma unroll
      for (int j = 0; j < 32; ++j) walker.partial()[32 * j] = out[j / 4][j % 4];
    device::cp_async_wait<0>();
    __syncthreads();
    begin_across(i + 1);
    const BlockAddress rows_at(device::shared_address(walk_memory + walker.shared.rows), walker.tile, false);
    uint32_t rows[4][4];
#pragma unroll
    for (int k = 0; k < 4; ++k) device::ldmatrix_x4_transposed(rows[k], rows_at.at(k, walker.row / 16));
    if constexpr (mode == Walk::keys)
      if (params.spanning) walker.store_spanning(spanning, chunk);
    if (has_out && walker.part == 0) {
      if constexpr (mode == Walk::values) walker.add_pairs(rows, out);
      if (walker.kParts == 2)
#pragma unroll
        for (int j = 0; j < 32; ++j) out[j / 4][j % 4] += walker.partial()[32 * j];
      walker.stage_out(out);
    }
    walker.update(rows, state);
    __syncthreads();
    begin_update(i + 1);
    if constexpr (has_out) {
      device::bf16* const to = params.out + ((piece.first + c * kChunk) * H + walker.h) * walker.M + walker.first_row;
      store_tile(walk_memory + walker.shared.out, to, H * walker.M, walker.tile, count_of(c));
    }
  }
  device::cp_async_wait<0>();
  store_end(walker, piece, state);
}

/// A block takes 128 rows of M (or all 64); with 512 columns two warps share rows, and it takes 64.
template <Walk mode, int C>
void launch_walk(Context& ctx, std::string_view name, const WalkParams& params) {
  const int64_t M = mode == Walk::keys ? params.problem.K : params.problem.V;
  const int tile = C > 256 || M < 128 ? 64 : 128, warps = tile / 16 * (C > 256 ? 2 : 1);
  const cuda::LaunchConfig config{
      .grid = {static_cast<unsigned>(params.segments.slots), static_cast<unsigned>(params.problem.H), static_cast<unsigned>(M / tile)},
      .block = static_cast<unsigned>(32 * warps),
      .shared_bytes = static_cast<size_t>(WalkShared(mode, C, tile).size)};
  cuda::launch(ctx.stream(), name, &walk<mode, C>, config, params);
}

/// C as a constant.
template <Walk mode>
void launch_walk(Context& ctx, std::string_view name, int64_t C, const WalkParams& params) {
  if (C == 64) launch_walk<mode, 64>(ctx, name, params);
  else if (C == 128) launch_walk<mode, 128>(ctx, name, params);
  else if (C == 256) launch_walk<mode, 256>(ctx, name, params);
  else launch_walk<mode, 512>(ctx, name, params);
}

}  // namespace braid::gla_cuda
