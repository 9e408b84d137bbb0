// The two CPU forms of gated_linear_attention, behind its checks.
#pragma once
#include "ops/recurrence/gated_linear_attention.h"

namespace braid::gla {

enum class Decay : uint8_t { absent, constant, head, channel };  // none, [H], [N, H], [N, H, K]

/// Tokens between two states that the chunked form keeps for backward.
inline constexpr int64_t kKeptEvery = 64;

struct Sizes {
  int64_t H, K, V;
  double scale;
  Decay decay;
};

template <class T>
struct Forward : Sizes {
  const T *q, *k, *v, *log_decay, *initial_state;  // null: absent
  T *o, *final_state;
  T* states;  // null: nothing is kept
};

template <class T>
struct Backward : Sizes {
  const T *q, *k, *v, *log_decay, *initial_state, *states;
  const T* d_o;
  const T* d_final_state;                // null: zero
  T *d_q, *d_k, *d_v, *d_initial_state;  // null: not wanted
  T* d_log_decay;                        // [N, H] or [N, H, K]; null: not wanted, or constant
  double* d_constant_decay;              // [S, H]: sums over the tokens of each sequence; null: not wanted
};

/// The heads [begin, end) of all sequences, numbered s · H + h, one token at a time.
template <class T>
void forward_token(const Forward<T>& op, const Sequences& seqs, int64_t begin, int64_t end);
template <class T>
void backward_token(const Backward<T>& op, const Sequences& seqs, int64_t begin, int64_t end);

/// The same, sixteen tokens at a time. first_state[s]: number of kept states of the sequences before s.
template <class T>
void forward_chunked(const Forward<T>& op, const Sequences& seqs, const std::vector<int64_t>& first_state, int64_t begin, int64_t end);
template <class T>
void backward_chunked(const Backward<T>& op, const Sequences& seqs, const std::vector<int64_t>& first_state, int64_t begin, int64_t end);

}  // namespace braid::gla
