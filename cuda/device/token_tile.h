// A tile of 64 tokens and 64 channels in a block of 256 threads, and the decays between its tokens. Device code.
#pragma once
#include <cstdint>

#include "cuda/device/math.h"

namespace braid::device {

inline constexpr int kTileThreads = 256;
// 2 to its power is zero in float32; sums of 64 keep three digits of any weaker decay beside it, and no infinity meets another.
inline constexpr float kForgotten = -150;

/// A token's log decay in base 2; a NaN stays one.
__device__ inline float log2_decay(float log_decay) {
  const float x = log_decay * kLog2E;
  return x < kForgotten ? kForgotten : x;
}

/// The elements of a tile that a thread owns, as accumulators of mma lie: warps share out 4 × 2 blocks of 16 tokens and 32 channels; element
/// (i, n) is channels column(n) and the next of token row(i).
struct TilePlace {
  const int lane = threadIdx.x % 32, band = threadIdx.x / 32 % 4, half = threadIdx.x / 128;
  __device__ int row(int i) const { return 16 * band + lane / 4 + 8 * i; }
  __device__ int column(int n) const { return 32 * half + 8 * n + lane % 4 * 2; }
  /// The element in a tile of bf16 in shared memory, whose 16-byte pieces are permuted by the row.
  template <class Byte>
  __device__ uint32_t& word(Byte* tile, int i, int n) const {
    const int piece = column(n) / 8;
    return *reinterpret_cast<uint32_t*>(tile + static_cast<uint32_t>(row(i) * 128 + (piece ^ row(i) % 8) * 16) + lane % 4 * 4);
  }
  /// body(i, n) for all eight elements.
  template <class Body>
  __device__ static void each(Body&& body) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int n = 0; n < 4; ++n) body(i, n);
  }
};

}  // namespace braid::device
