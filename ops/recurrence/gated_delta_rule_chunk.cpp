#include "ops/recurrence/gated_delta_rule_chunk.h"

#include <algorithm>
#include <initializer_list>

namespace braid::delta {

template <class T>
Chunk<T>::Chunk(Arena<T>& arena, int64_t K_, int64_t V_, Decay decay_) : K(padded(K_)), V(padded(V_)), decay(decay_) {
  const auto take = [&](int64_t count, std::initializer_list<T**> members) {
    for (T** member : members) *member = arena.take(count);
  };
  const bool channel = decay == Decay::channel;
  take(kChunk * kChunk, {&M, &P, &d_M, &d_P});
  take(kChunk * K, {&q, &k, &q_in, &k_in, &k_out, &k_t, &d_q_in, &d_k_in, &d_k_out, &d_q, &d_k});
  take(kChunk * V, {&v, &u, &d_o, &d_u, &d_r, &d_e, &u_t});
  take(kChunk, {&beta, &d_beta});
  take(K, {&total, &d_total});
  take(K * V, {&d_end_t, &start_t});
  take(std::max(kChunk * kChunk, chunk::kBlock * K), {&scratch});
  take(channel ? kChunk * K : kChunk, {&a, &d_log_decay});
  take(channel ? 0 : kChunk * kChunk, {&D});
  take(channel ? kChunk * K : 0, {&left_q, &left_k, &d_k_column});
  take(channel ? kChunk / chunk::kBlock * kChunk * K : 0, {&right});
  take(channel ? kChunk / chunk::kBlock * K : 0, {&before, &block_total});
  take(channel ? K : 0, {&tail, &d_k_last});
}

template struct Chunk<float>;
template struct Chunk<double>;

}  // namespace braid::delta
