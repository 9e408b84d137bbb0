// The kernel around Walker, and its launch. Device code.
#pragma once
#include "cuda/kernels/gated_linear_attention/walk.h"
#include "cuda/kernels/gated_linear_attention/walk_warp.h"
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#include "cuda/kernels/gated_linear_attention/walk_warpgroup.h"
#endif
#include "cuda/runtime/runtime.h"

namespace braid::gla_cuda {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
// Narrower states leave two blocks a multiprocessor, whose registers would not hold the operands of a warpgroup.
template <int C>
inline constexpr bool kByWarpgroup = C >= 256;
#else
template <int C>
inline constexpr bool kByWarpgroup = false;
namespace by_warpgroup = by_warp;
#endif

/// The state at the end of the walk, where it is wanted, and the product of a segment's decays.
template <Walk mode, int C, int threads>
__device__ inline void store_end(const Walker<mode, C, threads>& walker, const Piece& piece, typename Walker<mode, C, threads>::Accumulators& state) {
  const WalkParams& params = walker.params;
  const int64_t H = params.problem.H, K = params.problem.K, KV = K * params.problem.V;
  if (mode != Walk::local && !(params.last && (params.reverse ? piece.is_first : piece.is_last))) return;
  float* const to = params.last + ((mode == Walk::local ? piece.slot : piece.sequence) * H + walker.h) * KV;
  walker.each_element(state, [&](float x, int64_t at) { to[at] = x; });
  if constexpr (mode == Walk::local) {
    if (walker.first_row != 0) return;
    for (int64_t k = threadIdx.x; k < K; k += threads) {
      float product = 1;
      for (int64_t c = 0; c < piece.num_chunks; ++c) product *= params.decay[((piece.first_chunk + c) * H + walker.h) * K + k];
      params.segment_decay[(piece.slot * H + walker.h) * K + k] = product;
    }
  }
}

// With two stages the next chunk arrives while one is worked on. With one, two halves of a chunk overlap with the copies for each other:
// while the state is multiplied with `across`, the operands of the update arrive; while the state is updated, the next chunk's `across`.
template <Walk mode, int C, int threads>
__global__ void __launch_bounds__(threads, walk_blocks_a_multiprocessor(C)) walk(WalkParams params) {
  extern __shared__ __align__(1024) char walk_memory[];
  const Block block = block_of(params.problem.H, (mode == Walk::keys ? params.problem.K : params.problem.V) / Walker<mode, C, threads>::kTile);
  Walker<mode, C, threads> walker(params, walk_memory, block);
  constexpr bool has_out = mode != Walk::local, two_stages = Walker<mode, C, threads>::kStages == 2;
  const Piece piece = piece_of(params.segments, block.slot);
  const int64_t H = params.problem.H, KV = params.problem.K * params.problem.V;
  if (mode == Walk::local ? (params.reverse ? piece.is_first : piece.is_last) || piece.count == 0 : piece.count == 0 && !piece.is_last) return;
  const auto chunk_at = [&](int64_t i) { return params.reverse ? piece.num_chunks - 1 - i : i; };
  const auto count_of = [&](int64_t c) { return static_cast<int>(min(int64_t{kChunk}, piece.count - c * kChunk)); };
  const auto begin_across = [&](int64_t i) {
    if (has_out && i < piece.num_chunks) walker.load_across(walker.stage(i), piece.first + chunk_at(i) * kChunk, count_of(chunk_at(i)));
    device::cp_async_commit();
  };
  const auto begin_update = [&](int64_t i) {
    if (i < piece.num_chunks)
      walker.load_update(walker.stage(i), piece.first + chunk_at(i) * kChunk, count_of(chunk_at(i)), piece.first_chunk + chunk_at(i));
    device::cp_async_commit();
  };
  begin_across(0);
  begin_update(0);
  float state[Walker<mode, C, threads>::kColumns / 8][4];
  const float* const before = params.states ? params.states + (piece.slot * H + walker.h) * KV : nullptr;
  walker.each_element(state, [&](float& x, int64_t at) { x = has_out && before ? before[at] : 0.0f; });
  for (int64_t i = 0; i < piece.num_chunks; ++i) {
    const int64_t c = chunk_at(i), chunk = piece.first_chunk + c;
    float out[8][4] = {}, spanning[2] = {};
    walker.inputs = walker.stage(i);
    device::cp_async_wait<two_stages ? 0 : 1>();
    if constexpr (kByWarpgroup<C>) by_warpgroup::publish_copies();
    __syncthreads();
    if constexpr (two_stages) begin_across(i + 1), begin_update(i + 1);
    if constexpr (has_out) {
      if (mode == Walk::keys && params.kept) walker.keep(state, chunk, spanning);
      if constexpr (kByWarpgroup<C>) by_warpgroup::contract(walker, state, out);
      else by_warp::contract(walker, state, out);
      walker.give_part(out);
    }
    if constexpr (!two_stages) {
      device::cp_async_wait<0>();
      if constexpr (kByWarpgroup<C>) by_warpgroup::publish_copies();
      __syncthreads();
      begin_across(i + 1);
    }
    if constexpr (mode == Walk::keys)
      if (params.spanning) walker.store_spanning(spanning, chunk);
    if constexpr (kByWarpgroup<C>) by_warpgroup::update(walker, state, out);
    else by_warp::update(walker, state, out);
    __syncthreads();
    if constexpr (!two_stages) begin_update(i + 1);
    if constexpr (has_out) {
      device::bf16* const to = params.out + ((piece.first + c * kChunk) * H + walker.h) * walker.M + walker.first_row;
      store_tile<walker.kTile, threads>(walk_memory + walker.shared.out, to, H * walker.M, count_of(c));
    }
  }
  device::cp_async_wait<0>();
  store_end(walker, piece, state);
}

template <Walk mode, int C, int threads>
void launch_walk(Context& ctx, std::string_view name, const WalkParams& params) {
  using Kernel = Walker<mode, C, threads>;
  const int64_t M = mode == Walk::keys ? params.problem.K : params.problem.V;
  const WalkShared shared(mode, C, Kernel::kTile, walk_stages(C, cuda::facts(ctx.device().index).compute_capability));
  const cuda::LaunchConfig config{.grid = grid_of(params.segments.slots, params.problem.H, M / Kernel::kTile),
                                  .block = threads,
                                  .shared_bytes = static_cast<size_t>(shared.size)};
  cuda::launch(ctx.stream(), name, &walk<mode, C, threads>, config, params);
}

/// C as a constant, and as many threads as a tile of M takes.
template <Walk mode>
void launch_walk(Context& ctx, std::string_view name, int64_t C, const WalkParams& params) {
  const bool narrow = (mode == Walk::keys ? params.problem.K : params.problem.V) < 128;
  const auto launch = [&]<int columns>() {
    if (columns <= 256 && narrow) launch_walk<mode, columns, (columns <= 256 ? 128 : 256)>(ctx, name, params);
    else launch_walk<mode, columns, 256>(ctx, name, params);
  };
  if (C == 64) launch.template operator()<64>();
  else if (C == 128) launch.template operator()<128>();
  else if (C == 256) launch.template operator()<256>();
  else launch.template operator()<512>();
}

}  // namespace braid::gla_cuda
