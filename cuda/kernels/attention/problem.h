// What the attention kernels know of a call: addresses, sizes, and which tile of which sequence a block works on.
#pragma once
#include <cstdint>

#include "cuda/device/scalar.h"

namespace braid::attention {

struct Problem {
  const void *q, *k, *v;       // [Nq, H, D], [Nk, HK, D], [Nk, HK, DV]
  void* o;                     // [Nq, H, DV]
  float* lse;                  // [Nq, H]
  const void* d_o;             // [Nq, H, DV] or null (zero)
  const float* delta;          // [Nq, H]: <d_o, o> − d_lse; general path
  const float2* stats;         // [H, stats_stride]: (lse · log2 e, <d_o, o> − d_lse); tensor-core paths
  void *d_q, *d_k, *d_v;       // like q, k, v; null: not wanted
  const int64_t *cu_q, *cu_k;  // [S + 1]
  int64_t S, Nq, Nk, H, HK, D, DV;
  int64_t window;  // 0: none, and never more than the longest sequence of keys
  float scale;
  bool is_bf16;  // else float
};

/// Pairs from a row of stats to the next: every row is aligned to 16 bytes.
__host__ __device__ inline int64_t stats_stride(int64_t Nq) { return (Nq + 1) / 2 * 2; }
/// The pairs (lse · log2 e, delta) of head h from `query` on.
__device__ inline const float2* stats_of(const Problem& p, int64_t h, int64_t query) { return p.stats + h * stats_stride(p.Nq) + query; }

/// Blocks to launch so that every sequence has one for each `tile` of its tokens; some find nothing to do.
inline int64_t num_tiles(int64_t tokens, int64_t sequences, int64_t tile) { return sequences == 0 ? 0 : tokens / tile + sequences; }

/// One tile of queries or keys: rows first … of sequence s.
struct Tile {
  int64_t q_begin, k_begin;  // where the sequence starts in q and k
  int64_t lq, lk;            // its lengths
  int64_t first;             // the tile's first row, counted in the sequence
  int64_t s;                 // the sequence

  /// The position of query i among the keys of its sequence.
  __device__ int64_t position(int64_t i) const { return lk - lq + i; }
};

/// The tile of block `index` (below num_tiles) of the sequences `cu` (cu_q or cu_k). Sequence s has the numbers from cu[s] / tile + s
/// on: at least as many as it has tiles. The caller leaves when tile.first is not below the length.
__device__ inline Tile find_tile(const Problem& p, const int64_t* cu, int64_t tile, int64_t index) {
  int64_t low = 0, high = p.S;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (cu[middle] / tile + middle <= index) low = middle;
    else high = middle;
  }
  return {p.cu_q[low], p.cu_k[low], p.cu_q[low + 1] - p.cu_q[low], p.cu_k[low + 1] - p.cu_k[low], (index - cu[low] / tile - low) * tile, low};
}

/// Whether the query at `position` sees `key`.
__device__ inline bool sees(const Problem& p, int64_t position, int64_t key) {
  return key <= position && (p.window == 0 || key > position - p.window);
}

/// Keys [begin, end) that some of the queries [first, first + count) see.
struct Range {
  int64_t begin, end;
};
__device__ inline Range keys_of(const Problem& p, const Tile& tile, int64_t first, int64_t count) {
  const int64_t position = tile.position(first);
  const int64_t begin = p.window > 0 && position - p.window + 1 > 0 ? position - p.window + 1 : 0;
  return {begin, position + count};
}
/// Queries that see some of the keys [first, first + count).
__device__ inline Range queries_of(const Problem& p, const Tile& tile, int64_t first, int64_t count) {
  const int64_t offset = tile.lk - tile.lq, begin = first > offset ? first - offset : 0;
  int64_t end = tile.lq;
  if (p.window > 0 && first + count - 1 + p.window - offset < end) end = first + count - 1 + p.window - offset;
  return {begin, end};
}

}  // namespace braid::attention
