// Sixteen tokens of one head in the chunked form, shared by its forward and backward. Include it in .cpp files only.
#pragma once
#include "ops/recurrence/gated_linear_attention_forms.h"
#include "ops/recurrence/tiles.h"

namespace braid::gla {

using tiles::kTile;

/// Everything is padded to multiples of kTile: absent tokens and channels have q = k = v = 0 and no decay, and change nothing.
template <class T>
struct Tile {
  explicit Tile(const Sizes& sizes);

  Matrix<T> q, k, v;     // [kTile, K | V]; q times scale
  Matrix<T> a, p, r;     // [kTile, K]: decay of a token, of all up to it, of all after it; a only per channel
  Matrix<T> qp, kr;      // q * p, k * r
  Matrix<T> D;           // [kTile, kTile]: decay from token s (row) to t (column), 0 before s; unless per channel
  Matrix<T> A;           // [kTile, kTile]: A_ts, stored with s as the row
  Matrix<T> transposed;  // [K or V, kTile], scratch
};

/// Loads `count` tokens of head h from token t on, and their decays.
template <class T>
void load_tokens(Tile<T>& tile, const Sizes& op, const T* q, const T* k, const T* v, const T* log_decay, int64_t t, int64_t h, int64_t count);
/// Fills tile.A.
template <class T>
void compute_scores(Tile<T>& tile, const Sizes& op);
/// state [K, V] ← diag(p of the last token) state + (k * r)ᵀ v
template <class T>
void advance(Matrix<T>& state, const Tile<T>& tile) {
  const tiles::Keep<T> keep{tile.p.data() + (kTile - 1) * tile.p.cols(), 1};
  tiles::multiply(state.rows(), state.cols(), kTile, tiles::left_transposed(tile.kr), tile.v.data(), state.data(), keep);
}

}  // namespace braid::gla
