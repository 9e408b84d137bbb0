// The tiles that tokens are cut into, and the scan that joins them.
//
// What happens to a channel's state over a tile is one affine map, state → decay · state + rise; a sequence that begins inside the
// tile sets decay to 0. A tile may hold parts of many sequences, so the work does not depend on how tokens split into sequences.
#pragma once
#include "core/context.h"
#include "core/sequences.h"
#include "cuda/device/scalar.h"
#include "cuda/device/sequences.h"

namespace braid::cuda {

inline constexpr int64_t kTileTokens = 64;
inline constexpr int kTileThreads = 128;
/// Tokens whose operands are loaded before the first is used.
inline constexpr int kTokensAhead = 4;

inline int64_t num_tiles(int64_t num_tokens) { return (num_tokens + kTileTokens - 1) / kTileTokens; }

/// rise [tiles, D] becomes the state that enters each tile, from both maps; `reverse`: tiles are walked from the last to the first.
void join_tiles(Context& ctx, const Tensor& decay, const Tensor& rise, bool reverse);

/// body.operator()<T, L, width>(): types of x and of log_decay, and channels a thread carries (4, or 1 where 4 are not aligned).
template <class Body>
void dispatch_channels(DType x, DType log_decay, int64_t D, bool aligned, Body&& body) {
  const auto with_width = [&]<class T, class L>() {
    if (aligned && D % 4 == 0) body.template operator()<T, L, 4>();
    else body.template operator()<T, L, 1>();
  };
  if (x == DType::f32) with_width.template operator()<float, float>();
  else if (log_decay == DType::f32) with_width.template operator()<device::bf16, float>();
  else with_width.template operator()<device::bf16, device::bf16>();
}

}  // namespace braid::cuda
