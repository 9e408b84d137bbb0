// The items of the passes that go through queries: forward, and backward for d_q.
#pragma once
#include "cuda/kernels/attention/hopper.h"

namespace braid::attention::hopper {

/// An item: the queries of a tile of one head and the keys they see, in tiles; the last tile comes first.
struct Work {
  Tile tile;
  Range keys;
  int64_t h, hk, token, count;
  int num_tiles;  // 0: an item without queries
  int ahead;      // of the first query, from the first key of the last tile
  int live;       // keys of the last tile that are the sequence's; it may hold some that follow
};

template <class P>
__device__ Work find_work(const Params& params, int64_t item) {
  const Problem& p = params.problem;
  Work work;
  work.h = item % p.H, work.hk = work.h / (p.H / p.HK);
  work.tile = find_tile(p, p.cu_q, P::kQueries, params.items / p.H - 1 - item / p.H);  // those with the most keys first
  work.count = min(int64_t{P::kQueries}, work.tile.lq - work.tile.first);
  work.token = work.tile.q_begin + work.tile.first;
  work.keys = keys_of(p, work.tile, work.tile.first, work.count);
  work.num_tiles = work.count > 0 ? static_cast<int>((work.keys.end - work.keys.begin + P::kKeys - 1) / P::kKeys) : 0;
  const int64_t last_tile = work.keys.begin + int64_t{work.num_tiles - 1} * P::kKeys;
  work.ahead = static_cast<int>(work.tile.position(work.tile.first) - last_tile);
  work.live = static_cast<int>(min(int64_t{P::kKeys}, work.tile.lk - last_tile));
  return work;
}

}  // namespace braid::attention::hopper
