// One chunk of one value head, in contiguous scratch, and what a decay does to it.
//
// With G the running product of the decays a from the chunk's start (inclusive), as functions of the tokens i ≥ j:
//   M_ij = Σ_c k_ic k_jc G_i/G_j (i > j),   P_ij = Σ_c q_ic k_jc G_i/G_j (i ≥ j)
//   q⁺_i = q_i G_i,   k⁺_i = k_i G_i (what reads the state before the chunk),   k⁻_j = k_j G_end/G_j (what is added to the state)
// G_i/G_j stands for the product of a_{j+1} … a_i: it is never a quotient, so decays down to 0 are right.
#pragma once
#include "ops/recurrence/chunk.h"
#include "ops/recurrence/gated_delta_rule_forms.h"

namespace braid::delta {

/// Bump allocator over scratch; with a null start it only counts.
template <class T>
class Arena {
 public:
  explicit Arena(T* start) : start_(start) {}
  T* take(int64_t count) {
    T* result = start_ ? start_ + used_ : nullptr;
    used_ += padded(count);
    return result;
  }
  int64_t used() const { return used_; }

 private:
  T* start_;
  int64_t used_ = 0;
};

/// R rows (`tokens` real ones, then zeros), K and V whole vectors. Rows of [R, R] are kChunk apart.
template <class T>
struct Chunk {
  Chunk(Arena<T>& arena, int64_t K, int64_t V, Decay decay);

  int64_t K, V, R = 0, tokens = 0;
  Decay decay;
  T *q, *k, *v, *beta;      // q times scale
  T* a;                     // decays: [R], with Decay::channel [R, K]
  T *M, *P;                 // [R, R]
  T *q_in, *k_in;           // q⁺, k⁺ [R, K]
  T* k_out;                 // k⁻ [R, K]
  T* total;                 // product of the decays [K]
  T* k_t;                   // [K, R]
  T* D;                     // head: G_i/G_j [R, R]
  T *left_q, *left_k;       // channel: q, k times the product from the start of their block of 16
  T* right;                 // channel: keys times the product up to the end of block b, slabs [R, K]
  T *before, *block_total;  // channel: [blocks, K] products before and over each block

  T *u, *d_o;              // [R, V]
  T *d_u, *d_r, *d_e;      // [R, V]; d_e is the gradient of v
  T *d_end_t, *start_t;    // [V, K]: gradient of the state after the chunk and the state before it, transposed
  T* u_t;                  // [V, R]
  T *d_M, *d_P, *scratch;  // scratch: [R, R] or [16, K]
  T *d_q_in, *d_k_in, *d_k_out, *d_total;
  T *d_q, *d_k, *d_beta, *d_log_decay;  // results
  T* d_k_column;                        // channel: [R, K]
  T *tail, *d_k_last;                   // channel: [K]

  T* right_slab(int64_t block) const { return right + block * kChunk * K; }
};

/// M, P, q_in, k_in, k_out, total from q, k, a.
template <class T>
void head_decay_forward(Chunk<T>& c);
template <class T>
void channel_decay_forward(Chunk<T>& c);
/// d_q, d_k, d_log_decay from the gradients of those (d_k_out is used up).
template <class T>
void head_decay_backward(Chunk<T>& c);
template <class T>
void channel_decay_backward(Chunk<T>& c);

}  // namespace braid::delta
