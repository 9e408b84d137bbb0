// The tiles that tokens are cut into, and what they leave for each other.
//
// What happens to a channel's state over some tokens is one affine map, state → decay · state + rise; a sequence that begins among them
// makes decay 0. A tile may hold parts of many sequences, so the work does not depend on how tokens split into sequences.
#pragma once
#include "core/context.h"
#include "cuda/device/scalar.h"
#include "cuda/runtime/check.h"

namespace braid::cuda {

/// A block's threads are 16 lanes of `width` channels × 8 segments of 8 tokens.
inline constexpr int kLanes = 16, kSegments = 8, kSegmentTokens = 8;
inline constexpr int kTileThreads = kLanes * kSegments, kTileTokens = kSegments * kSegmentTokens;
/// Tiles that are joined by reading each other's maps; a group hands its state to the next.
inline constexpr int kGroupTiles = 8;

/// In global memory, all ones where nothing was written yet. Tiles are counted in the order of the walk (backward: from the last token).
struct TileExchange {
  unsigned* next_ticket;  // null: there is one tile, and nothing to exchange
  uint64_t* maps;         // [tiles, blocks of channels, channels]: a tile's decay and rise
  unsigned* states;       // [groups, blocks of channels, channels]: the state after a group
  int64_t tiles, blocks;
};

/// The memory of an exchange, all ones; undefined for one tile.
Tensor make_exchange(Context& ctx, int64_t tiles, int64_t blocks, int channels, TileExchange& exchange);

/// body.operator()<T, L, width>(): types of x and of log_decay, and channels a thread carries: 16 bytes of x, or 1 where that is not aligned.
template <class Body>
void dispatch_channels(DType x, DType log_decay, int64_t D, bool aligned, Body&& body) {
  const auto with_width = [&]<class T, class L>() {
    constexpr int width = device::kPackSize<T>;
    if (aligned && D % width == 0) body.template operator()<T, L, width>();
    else body.template operator()<T, L, 1>();
  };
  if (x == DType::f32) with_width.template operator()<float, float>();
  else if (log_decay == DType::f32) with_width.template operator()<device::bf16, float>();
  else with_width.template operator()<device::bf16, device::bf16>();
}

/// Launches kernel(params) on all tiles and blocks of `width` channels a lane, with the exchange that params then holds.
template <int width, class Params>
void launch_tiles(Context& ctx, std::string_view name, void (*kernel)(Params), int64_t shared_bytes, Params params) {
  constexpr int channels = kLanes * width;
  const int64_t tiles = (params.N + kTileTokens - 1) / kTileTokens, blocks = (params.D + channels - 1) / channels;
  const Tensor memory = make_exchange(ctx, tiles, blocks, channels, params.exchange);
  launch(ctx.stream(), name, kernel,
         {.grid = static_cast<unsigned>(tiles * blocks), .block = kTileThreads, .shared_bytes = static_cast<size_t>(shared_bytes), .overlaps = true},
         params);
}

}  // namespace braid::cuda
