// What decoding carries from one call to the next.
#pragma once
#include <array>
#include <vector>

#include "core/sequences.h"

namespace braid {

/// Keys and values of one sequence in one attention layer, in a buffer that grows by doubling. With a window only what the window can
/// still reach is live; the rest is overwritten when space is needed.
class KvCache {
 public:
  /// Adds rows k, v [n, HK, D] after the live ones, of which only the last `keep` stay (negative: all).
  void append(Context& ctx, const Tensor& k, const Tensor& v, int64_t keep);
  int64_t length() const { return end_ - begin_; }
  int64_t capacity() const { return k_ ? k_.size(0) : 0; }
  /// The live rows, contiguous; valid until the next append.
  Tensor k() const { return k_.slice(0, begin_, end_); }
  Tensor v() const { return v_.slice(0, begin_, end_); }
  int64_t bytes() const { return k_ ? k_.nbytes() + v_.nbytes() : 0; }
  KvCache clone(Context& ctx) const;

  /// Lays the last live rows out as a ring of `capacity` rows in which the token at position p is row p mod capacity; the last live row is of
  /// position `next_position` − 1. From then on rows are written by a graph, and append must not be called.
  void make_ring(Context& ctx, int64_t capacity, int64_t next_position);
  /// The whole ring; undefined where there was no live row to learn the shape from.
  const Tensor& ring_k() const { return k_; }
  const Tensor& ring_v() const { return v_; }

 private:
  void make_room(Context& ctx, const Tensor& like_k, const Tensor& like_v, int64_t rows);
  Tensor k_, v_;  // [capacity, HK, D]
  int64_t begin_ = 0, end_ = 0;
};

/// Of one layer. Undefined tensors stand for zeros: nothing was seen yet.
struct LayerState {
  Tensor recurrent;            // [S, D] or [S, H, K, V], accumulator type
  std::array<Tensor, 3> conv;  // tails of the short convolutions, [S, D, W−1], in the order in which the mixer has them
  std::vector<KvCache> kv;     // attention: per sequence
};

/// Recurrent states, convolution tails and KV caches of S sequences, for any number of tokens per call: HybridLm::hidden reads and
/// updates it. No gradient flows through it.
class State {
 public:
  State(int64_t num_layers, int64_t num_sequences) : layers(num_layers), positions(num_sequences, 0) {}
  State(State&&) = default;
  State& operator=(State&&) = default;

  int64_t num_sequences() const { return static_cast<int64_t>(positions.size()); }
  /// Bytes held now, recurrent states, convolution tails and KV caches (whole buffers) together.
  int64_t bytes() const;
  /// An independent copy: continuations of one prompt.
  State clone(Context& ctx) const;
  /// Handles on the very same tensors.
  State shared() const { return State(*this); }

  std::vector<LayerState> layers;
  std::vector<int64_t> positions;  // per sequence: tokens seen, which is the position of its next token
  Tensor device_positions;         // the same on a GPU while a graph decodes (train/decoder.h): then it counts, `positions` does not

 private:
  State(const State&) = default;
};

}  // namespace braid
