// What forward and backward share on the device: operands waiting in shared memory, sequence marks, and the single-pass join of tiles.
#pragma once
#include "cuda/device/math.h"
#include "cuda/device/mma.h"
#include "cuda/device/scalar.h"
#include "cuda/device/sequences.h"
#include "cuda/kernels/linear_recurrence/tiles.h"

namespace braid::cuda {

/// state → decay · state + rise. Without decay nothing of the state is left, not even a NaN: it may be another sequence's.
struct Map {
  float decay, rise;
  __device__ float at(float state) const { return decay == 0 ? rise : fmaf(decay, state, rise); }
  __device__ Map then(const Map& next) const { return {next.decay == 0 ? 0.0f : decay * next.decay, next.at(rise)}; }
};

/// A thread's own operands of its segment, `width` channels of 8 tokens, fetched into shared memory that only this thread reads.
template <class T, int width>
struct Staged {
  static constexpr int kPackBytes = sizeof(T) * width, kPieces = kPackBytes < 16 ? 1 : kPackBytes / 16;
  static constexpr int kBytes = kSegmentTokens * kTileThreads * kPackBytes;
  std::byte* base;

  __device__ std::byte* piece(int token, int i) const {
    return base + ((token * kPieces + i) * kTileThreads + static_cast<int>(threadIdx.x)) * (kPackBytes / kPieces);
  }
  /// Begins to fetch; zeros when not `live`.
  __device__ void fetch(int token, const T* from, bool live) const {
    if constexpr (kPackBytes < 16) {
      static_assert(width == 1);
      *reinterpret_cast<T*>(piece(token, 0)) = live ? *from : device::from_float<T>(0.0f);
    } else {
#pragma unroll
      for (int i = 0; i < kPieces; ++i)
        device::cp_async16(device::shared_address(piece(token, i)), from + (live ? i * (16 / static_cast<int>(sizeof(T))) : 0), live);
    }
  }
  __device__ void get(int token, float (&to)[width]) const {
    constexpr int kEach = width / kPieces;
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      float part[kEach];
      device::load(reinterpret_cast<const T*>(piece(token, i)), part);
#pragma unroll
      for (int j = 0; j < kEach; ++j) to[i * kEach + j] = part[j];
    }
  }
};

/// Of each token of a tile: the sequence that begins with it, the one that ends with it; −1: none.
struct SequenceMarks {
  int64_t first[kTileTokens], last[kTileTokens];

  /// True when the calling thread's token has a mark.
  __device__ bool set(const int64_t* cu_seqlens, int64_t S, int64_t begin, int64_t N) {
    if (threadIdx.x >= kTileTokens) return false;
    const int64_t t = begin + threadIdx.x;
    first[threadIdx.x] = last[threadIdx.x] = -1;
    if (t >= N) return false;
    const device::SequenceWalk sequence(cu_seqlens, S, t);
    if (t == sequence.begin) first[threadIdx.x] = sequence.idx;
    if (t + 1 == sequence.end) last[threadIdx.x] = sequence.idx;
    return t == sequence.begin || t + 1 == sequence.end;
  }
};

/// What kind a tile is, the same for all threads of a block: loops over a plain one ask nothing of a token.
enum class TileKind { plain, marked };

/// Channel c of lane l stands at c · 16 + l here and in the exchange: neighbours in a warp are neighbours in memory.
template <int width>
struct alignas(16) TileShared {
  static constexpr int kChannels = kLanes * width;
  Map maps[kSegments][kChannels];
  SequenceMarks marks;
  unsigned ticket;
};

/// Which tile and block of channels this thread block works on: drawn in the order of the walk, so that a tile only ever waits for tiles
/// that are running or done. Every thread must call it.
__device__ inline unsigned draw_ticket(const TileExchange& exchange, unsigned& shared) {
  if (!exchange.next_ticket) return blockIdx.x;
  if (threadIdx.x == 0) shared = atomicAdd(exchange.next_ticket, 1u) + 1;  // it starts at all ones
  __syncthreads();
  return shared;
}

/// Data are their own flags: 8 (or 4) bytes arrive at once or not at all.
__device__ inline uint64_t peek(const uint64_t* from) {
  uint64_t value;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(value) : "l"(from) : "memory");
  return value;
}
__device__ inline unsigned peek(const unsigned* from) {
  unsigned value;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}
__device__ inline void post(uint64_t* to, uint64_t value) { asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to), "l"(value) : "memory"); }
__device__ inline void post(unsigned* to, unsigned value) { asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory"); }

/// Never all ones: such a NaN becomes another.
__device__ inline unsigned bits_of(float x) { return __float_as_uint(x) == ~0u ? 0x7fffffffu : __float_as_uint(x); }
__device__ inline uint64_t bits_of(const Map& map) { return uint64_t{bits_of(map.rise)} << 32 | bits_of(map.decay); }
__device__ inline Map map_of(uint64_t bits) {
  return {__uint_as_float(static_cast<unsigned>(bits)), __uint_as_float(static_cast<unsigned>(bits >> 32))};
}

/// The state that enters tile `tile`, whose own map is `own`, at `position` of the block's channels; `stride` values a tile. Which maps
/// are composed in which order depends on nothing but the tile's number: the same bits every time.
__device__ inline float state_before(const TileExchange& exchange, int64_t tile, const Map& own, int64_t position, int64_t stride) {
  const int64_t group = tile / kGroupTiles;
  const int member = static_cast<int>(tile % kGroupTiles);
  uint64_t* maps = exchange.maps + group * kGroupTiles * stride + position;
  if (member + 1 < kGroupTiles) post(maps + member * stride, bits_of(own));
  uint64_t seen[kGroupTiles - 1];
#pragma unroll
  for (int i = 0; i < kGroupTiles - 1; ++i)
    if (i < member) seen[i] = peek(maps + i * stride);
  Map within = {1, 0};
#pragma unroll
  for (int i = 0; i < kGroupTiles - 1; ++i) {
    if (i >= member) break;
    while (seen[i] == ~uint64_t{0}) seen[i] = peek(maps + i * stride);
    within = within.then(map_of(seen[i]));
  }
  float state = 0;
  if (group > 0) {
    const unsigned* before = exchange.states + (group - 1) * stride + position;
    unsigned bits;
    do bits = peek(before);
    while (bits == ~0u);
    state = __uint_as_float(bits);
  }
  if (member + 1 == kGroupTiles) post(exchange.states + group * stride + position, bits_of(within.then(own).at(state)));
  return within.at(state);
}

/// shared.maps holds the map of each segment; afterwards their `rise` is the state that enters the segment. Every thread must call it.
template <int width>
__device__ inline void join_tiles(TileShared<width>& shared, const TileExchange& exchange, int64_t tile, int64_t block) {
  constexpr int channels = TileShared<width>::kChannels;
  static_assert(channels <= kTileThreads);
  __syncthreads();
  const int position = threadIdx.x;
  if (position < channels) {
    Map before[kSegments], all = {1, 0};
#pragma unroll
    for (int s = 0; s < kSegments; ++s) before[s] = all, all = all.then(shared.maps[s][position]);
    const float state = exchange.next_ticket ? state_before(exchange, tile, all, block * channels + position, exchange.blocks * channels) : 0.0f;
#pragma unroll
    for (int s = 0; s < kSegments; ++s) shared.maps[s][position].rise = before[s].at(state);
  }
  __syncthreads();
}

}  // namespace braid::cuda
