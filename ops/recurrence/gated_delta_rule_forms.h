// The two CPU forms of gated_delta_rule, on plain arrays: q and k normalised, checks done (gated_delta_rule.h has the mathematics).
#pragma once
#include "core/context.h"
#include "core/sequences.h"

namespace braid::delta {

enum class Decay : uint8_t { none, head, channel };

/// A null pointer is an absent input.
template <class T>
struct Problem {
  int64_t H, HV, K, V;
  Sequences seqs;
  T scale;
  Decay decay;
  const T* q;              // [N, H, K]
  const T* k;              // [N, H, K]
  const T* v;              // [N, HV, V]
  const T* beta;           // [N, HV]
  const T* log_decay;      // [N, HV] or [N, HV, K]
  const T* initial_state;  // [S, HV, K, V]

  int64_t num_lanes() const { return seqs.count() * HV; }  // a lane: one value head of one sequence
  int64_t query_head(int64_t head) const { return head / (HV / H); }
};

/// Gradients: null where none came or none is wanted. Those wanted are overwritten.
template <class T>
struct Gradients {
  const T* d_o;            // [N, HV, V]
  const T* d_final_state;  // [S, HV, K, V]
  T* d_q;                  // [N, HV, K]: of each value head, to be summed over groups
  T* d_k;                  // [N, HV, K]
  T* d_v;
  T* d_beta;
  T* d_log_decay;
  T* d_initial_state;
};

/// What the chunked form keeps for backward. R: chunk tokens; K and V are rounded up to whole vectors.
template <class T>
struct ChunkMemory {
  T* states;   // [chunks, HV, K, V] before each chunk
  T* inverse;  // [chunks, HV, R, R]
  T* u;        // [chunks, HV, R, V]
};
inline constexpr int64_t kChunk = 64;
inline int64_t padded(int64_t size) { return (size + 15) / 16 * 16; }
int64_t num_chunks(const Sequences& seqs);

/// `states` [N, HV, K, V] gets the state after each token but the last of each sequence (that one is the final state).
template <class T>
void token_forward(Context& ctx, const Problem<T>& problem, T* o, T* final_state, T* states);
template <class T>
void token_backward(Context& ctx, const Problem<T>& problem, const T* final_state, const T* states, const Gradients<T>& grads);

template <class T>
void chunked_forward(Context& ctx, const Problem<T>& problem, T* o, T* final_state, const ChunkMemory<T>& memory);
template <class T>
void chunked_backward(Context& ctx, const Problem<T>& problem, const ChunkMemory<T>& memory, const Gradients<T>& grads);

}  // namespace braid::delta
