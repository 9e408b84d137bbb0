// The chunked form. Of one chunk with the state S before it (notation of gated_delta_rule_chunk.h; B = diag(beta)):
//   A = (I + B M)^{-1},   R = B (V − K⁺ S),   U = A R,   O = Q⁺ S + P U,   S_end = diag(total) S + K⁻^T U
// Backward, with dS that of S_end:
//   dU = P^T dO + K⁻ dS,   dR = A^T dU,   dV = B dR,   dS_start = diag(total) dS + Q⁺^T dO − K⁺^T dV
//   dQ⁺ = dO S^T,   dK⁺ = −dV S^T,   dK⁻ = U dS^T,   dP = dO U^T,   dM = −dV U^T,   dbeta = dR · (V − K⁺ S) − (dR U^T ∘ M) 1
// prepare and finish know one chunk only; what runs through the sequence (sweep) is kept as short as that allows.
#include <algorithm>
#include <type_traits>
#include <vector>

#include "ops/recurrence/decay.h"
#include "ops/recurrence/gated_delta_rule_chunk.h"

namespace braid::delta {

using chunk::plain;
using chunk::Store;
using chunk::transposed;

int64_t num_chunks(const Sequences& seqs) {
  int64_t count = 0;
  for (int64_t s = 0; s < seqs.count(); ++s) count += (seqs.length(s) + kChunk - 1) / kChunk;
  return count;
}

namespace {

/// Always aligned alike: the order of Eigen's sums, and so their bits, depends on it.
template <class T>
using Scratch = std::vector<T, Eigen::aligned_allocator<T>>;

/// Where a chunk lies.
struct Place {
  int64_t lane, sequence, head;
  int64_t begin, end;  // tokens
  int64_t index;       // of chunk and head, in saved arrays
};

/// The chunks of every sequence.
struct Layout {
  explicit Layout(const Sequences& seqs) : first_chunk(seqs.count() + 1, 0) {
    for (int64_t s = 0; s < seqs.count(); ++s) first_chunk[s + 1] = first_chunk[s] + (seqs.length(s) + kChunk - 1) / kChunk;
  }
  int64_t length(int64_t sequence) const { return first_chunk[sequence + 1] - first_chunk[sequence]; }
  int64_t max_length() const {
    int64_t longest = 0;
    for (size_t s = 0; s + 1 < first_chunk.size(); ++s) longest = std::max(longest, length(static_cast<int64_t>(s)));
    return longest;
  }
  template <class T>
  Place place(const Problem<T>& x, int64_t lane, int64_t i) const {
    const int64_t s = lane / x.HV, head = lane % x.HV, begin = x.seqs.begin(s) + i * kChunk;
    return {lane, s, head, begin, std::min(begin + kChunk, x.seqs.end(s)), (first_chunk[s] + i) * x.HV + head};
  }
  std::vector<int64_t> first_chunk;
};

/// to [R, padded(width)] = factor · from (rows `stride` apart), zeros around it.
template <class From, class T>
void load_rows(const From* from, int64_t stride, int64_t tokens, int64_t width, T factor, T* to, int64_t R) {
  constexpr int64_t kAhead = 12, kLine = 64 / sizeof(From);  // rows are too far apart for the processor to see what comes next
  const int64_t full = padded(width);
  for (int64_t i = 0; i < R; ++i) {
    const int64_t real = i < tokens && from ? width : 0;
    for (int64_t c = 0; i + kAhead < tokens && c < real; c += kLine) __builtin_prefetch(from + (i + kAhead) * stride + c);
    if (real) array(to + i * full, real) = factor * array(from + i * stride, real).template cast<T>();
    array(to + i * full + real, full - real).setZero();
  }
}
template <class T>
void store_rows(const T* from, int64_t tokens, int64_t width, T* to, int64_t stride, T factor = T(1)) {
  const int64_t full = padded(width);
  for (int64_t i = 0; i < tokens; ++i) array(to + i * stride, width) = factor * array(from + i * full, width);
}

template <class From, class T>
void load(const Problem<From>& x, const Place& place, Chunk<T>& c) {
  c.tokens = place.end - place.begin;
  c.R = padded(c.tokens);
  const int64_t query_row = place.begin * x.H + x.query_head(place.head), row = place.begin * x.HV + place.head;
  load_rows(x.q + query_row * x.K, x.H * x.K, c.tokens, x.K, T(x.scale), c.q, c.R);
  load_rows(x.k + query_row * x.K, x.H * x.K, c.tokens, x.K, T(1), c.k, c.R);
  load_rows(x.v + row * x.V, x.HV * x.V, c.tokens, x.V, T(1), c.v, c.R);
  for (int64_t i = 0; i < c.R; ++i) c.beta[i] = i < c.tokens ? x.beta[row + i * x.HV] : T(0);
  if (x.decay == Decay::channel) {
    load_rows(x.log_decay + row * x.K, x.HV * x.K, c.tokens, x.K, T(1), c.a, c.R);
    exponentiate(c.a, c.R * c.K);
    channel_decay_forward(c);
  } else {
    for (int64_t i = 0; i < c.R; ++i) c.a[i] = i < c.tokens && x.log_decay ? std::exp(T(x.log_decay[row + i * x.HV])) : T(1);
    head_decay_forward(c);
  }
}

/// Whether pairs of tokens read most of each other: the mean square of M (keys of unit length) is far above the 1/K of random keys.
template <class T>
bool keys_repeat(const Chunk<T>& c) {
  T sum = 0;
  for (int64_t i = 1; i < c.tokens; ++i) sum += array(c.M + i * kChunk, i).square().sum();
  return sum > T(0.25) * T(c.tokens) * T(c.tokens - 1) / 2;
}

/// A. Where keys repeat U hardly forgets: it adds up what each M_ij is wrong by, so that in float32 M and A are made in float64.
template <class T>
void invert(const Problem<T>& x, const Place& place, const Chunk<T>& c, T* inverse) {
  if (std::is_same_v<T, double> || !keys_repeat(c)) return chunk::invert_unit_lower(c.R, c.M, c.beta, inverse, kChunk, c.scratch);
  Arena<double> counting(nullptr);
  const Chunk<double> counted(counting, x.K, x.V, x.decay);
  Scratch<double> memory(counting.used()), result(kChunk * kChunk);
  Arena<double> arena(memory.data());
  Chunk<double> wide(arena, x.K, x.V, x.decay);
  load(x, place, wide);
  chunk::invert_unit_lower(wide.R, wide.M, wide.beta, result.data(), kChunk, wide.scratch);
  array(inverse, kChunk * c.R) = array(result.data(), kChunk * c.R).template cast<T>();
}

/// O and U of the chunk; S [K, V] moves from its start to its end.
template <class T>
void sweep_forward(const Chunk<T>& c, const T* inverse, T* u, T* S) {
  const int64_t R = c.R, K = c.K, V = c.V;
  T *r = c.d_r, *o = c.d_o;
  array(r, R * V) = array(c.v, R * V);
  chunk::multiply(R, V, K, plain(c.k_in, K), S, V, r, V, Store::subtract);
  for (int64_t i = 0; i < R; ++i) array(r + i * V, V) *= c.beta[i];
  chunk::multiply_lower(R, V, plain(inverse, kChunk), r, V, u, V, Store::set);
  chunk::multiply(R, V, K, plain(c.q_in, K), S, V, o, V, Store::set);
  chunk::multiply_lower(R, V, plain(c.P, kChunk), u, V, o, V, Store::add);
  for (int64_t i = 0; i < K; ++i) array(S + i * V, V) *= c.total[i];
  chunk::multiply(K, V, R, transposed(c.k_out, K), u, V, S, V, Store::add);
}

/// d_u, d_r, d_e, d_end_t, d_total of the chunk; dS [K, V] moves from its end to its start.
template <class T>
void sweep_backward(const Chunk<T>& c, const T* inverse, const T* S, T* dS) {
  const int64_t R = c.R, K = c.K, V = c.V;
  chunk::multiply_upper(R, V, transposed(c.P, kChunk), c.d_o, V, c.d_u, V, Store::set);
  chunk::multiply(R, V, K, plain(c.k_out, K), dS, V, c.d_u, V, Store::add);
  chunk::multiply_upper(R, V, transposed(inverse, kChunk), c.d_u, V, c.d_r, V, Store::set);
  for (int64_t i = 0; i < R; ++i) array(c.d_e + i * V, V) = c.beta[i] * array(c.d_r + i * V, V);
  chunk::transpose(K, V, dS, V, c.d_end_t, K);
  for (int64_t i = 0; i < K; ++i) {
    c.d_total[i] = vector(S + i * V, V).dot(vector(dS + i * V, V));
    array(dS + i * V, V) *= c.total[i];
  }
  chunk::multiply(K, V, R, transposed(c.q_in, K), c.d_o, V, dS, V, Store::add);
  chunk::multiply(K, V, R, transposed(c.k_in, K), c.d_e, V, dS, V, Store::subtract);
}

/// The gradients of one chunk's inputs.
template <class T>
void finish_backward(Chunk<T>& c, const T* S, const T* u) {
  const int64_t R = c.R, K = c.K, V = c.V;
  chunk::transpose(K, V, S, V, c.start_t, K);
  chunk::transpose(R, V, u, V, c.u_t, kChunk);
  chunk::multiply(R, K, V, plain(c.d_o, V), c.start_t, K, c.d_q_in, K, Store::set);
  chunk::multiply(R, K, V, plain(c.d_r, V), c.start_t, K, c.d_k_in, K, Store::set);
  chunk::multiply(R, K, V, plain(u, V), c.d_end_t, K, c.d_k_out, K, Store::set);
  chunk::multiply_into_lower(R, V, plain(c.d_o, V), c.u_t, kChunk, c.d_P, kChunk, Store::set);
  chunk::multiply_into_lower(R, V, plain(c.d_r, V), c.u_t, kChunk, c.d_M, kChunk, Store::set);
  for (int64_t i = 0; i < R; ++i) {
    const int64_t width = padded(i + 1);
    auto d_M = array(c.d_M + i * kChunk, width), d_k_in = array(c.d_k_in + i * K, K);
    d_M.tail(width - i).setZero();
    c.d_beta[i] = vector(c.d_r + i * V, V).dot(vector(c.v + i * V, V)) - (d_k_in * array(c.k_in + i * K, K)).sum() -
                  (d_M * array(c.M + i * kChunk, width)).sum();
    d_M *= -c.beta[i];
    d_k_in *= -c.beta[i];
  }
  if (c.decay == Decay::channel) channel_decay_backward(c);
  else head_decay_backward(c);
}

template <class T>
void store_gradients(const Problem<T>& x, const Place& place, const Chunk<T>& c, const Gradients<T>& grads) {
  const int64_t row = place.begin * x.HV + place.head;
  if (grads.d_q) store_rows(c.d_q, c.tokens, x.K, grads.d_q + row * x.K, x.HV * x.K, x.scale);
  if (grads.d_k) store_rows(c.d_k, c.tokens, x.K, grads.d_k + row * x.K, x.HV * x.K);
  if (grads.d_v) store_rows(c.d_e, c.tokens, x.V, grads.d_v + row * x.V, x.HV * x.V);
  for (int64_t i = 0; i < c.tokens; ++i) {
    if (grads.d_beta) grads.d_beta[row + i * x.HV] = c.d_beta[i];
    if (grads.d_log_decay && x.decay == Decay::head) grads.d_log_decay[row + i * x.HV] = c.d_log_decay[i];
  }
  if (grads.d_log_decay && x.decay == Decay::channel) store_rows(c.d_log_decay, c.tokens, x.K, grads.d_log_decay + row * x.K, x.HV * x.K);
}

/// Takes every lane through its chunks, forwards or backwards: prepare(place, chunk), sweep(place, chunk, state), finish(place,
/// chunk). state [lanes, K, V]. Where lanes are fewer than threads, prepare and finish of several chunks run at once.
template <class T, class Prepare, class Sweep, class Finish>
void walk(Context& ctx, const Problem<T>& x, bool backwards, T* states, Prepare&& prepare, Sweep&& sweep, Finish&& finish) {
  const Layout layout(x.seqs);
  const int64_t lanes = x.num_lanes(), size = padded(x.K) * padded(x.V), longest = layout.max_length(), threads = ctx.num_threads();
  Arena<T> counting(nullptr);
  const Chunk<T> counted(counting, x.K, x.V, x.decay);
  const auto place = [&](int64_t lane, int64_t step) { return layout.place(x, lane, backwards ? layout.length(lane / x.HV) - 1 - step : step); };
  if (lanes >= threads || longest <= 1) {
    const int64_t grain = std::clamp<int64_t>(lanes / threads, 1, 8);
    ctx.parallel_for(lanes, grain, [&](int64_t begin, int64_t end) {
      Scratch<T> memory(counting.used());
      Arena<T> arena(memory.data());
      Chunk<T> c(arena, x.K, x.V, x.decay);
      // Chunk by chunk, so that the heads of a token are read while its pages are at hand.
      for (int64_t step = 0; step < longest; ++step) {
        for (int64_t lane = begin; lane < end; ++lane) {
          if (step >= layout.length(lane / x.HV)) continue;
          const Place at = place(lane, step);
          prepare(at, c);
          sweep(at, c, states + lane * size);
          finish(at, c);
        }
      }
    });
    return;
  }
  const int64_t window = std::min<int64_t>(longest, (4 * threads + lanes - 1) / lanes);
  Scratch<T> memory(window * lanes * counting.used());
  Arena<T> arena(memory.data());
  std::vector<Chunk<T>> chunks;
  for (int64_t i = 0; i < window * lanes; ++i) chunks.emplace_back(arena, x.K, x.V, x.decay);
  for (int64_t first = 0; first < longest; first += window) {
    const auto each = [&](auto&& body) {
      return [&, body](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
          if (first + i / lanes < layout.length(i % lanes / x.HV)) body(place(i % lanes, first + i / lanes), chunks[i]);
      };
    };
    ctx.parallel_for(window * lanes, 1, each(prepare));
    ctx.parallel_for(lanes, 1, [&](int64_t begin, int64_t end) {
      const auto move = [&](const Place& at, Chunk<T>& c) { sweep(at, c, states + at.lane * size); };
      for (int64_t lane = begin; lane < end; ++lane)
        for (int64_t i = 0; i < window; ++i) each(move)(i * lanes + lane, i * lanes + lane + 1);
    });
    ctx.parallel_for(window * lanes, 1, each(finish));
  }
}

/// Padded copies [lanes, padded(K), padded(V)] of states [lanes, K, V] (null: zeros), and back.
template <class T>
Scratch<T> padded_states(const Problem<T>& x, const T* from) {
  const int64_t K = padded(x.K), V = padded(x.V);
  Scratch<T> states(x.num_lanes() * K * V, T(0));
  for (int64_t lane = 0; from && lane < x.num_lanes(); ++lane)
    matrix(states.data() + lane * K * V, x.K, x.V, V) = matrix(from + lane * x.K * x.V, x.K, x.V);
  return states;
}
template <class T>
void store_states(const Problem<T>& x, const Scratch<T>& states, T* to) {
  const int64_t K = padded(x.K), V = padded(x.V);
  for (int64_t lane = 0; lane < x.num_lanes(); ++lane) matrix(to + lane * x.K * x.V, x.K, x.V) = matrix(states.data() + lane * K * V, x.K, x.V, V);
}

}  // namespace

template <class T>
void chunked_forward(Context& ctx, const Problem<T>& x, T* o, T* final_state, const ChunkMemory<T>& memory) {
  const int64_t size = padded(x.K) * padded(x.V), size_u = kChunk * padded(x.V), size_A = kChunk * kChunk;
  Scratch<T> states = padded_states(x, x.initial_state);
  const auto prepare = [&](const Place& at, Chunk<T>& c) {
    load(x, at, c);
    invert(x, at, c, memory.inverse + at.index * size_A);
  };
  const auto sweep = [&](const Place& at, Chunk<T>& c, T* S) {
    array(memory.states + at.index * size, size) = array(S, size);
    sweep_forward(c, memory.inverse + at.index * size_A, memory.u + at.index * size_u, S);
  };
  const auto finish = [&](const Place& at, Chunk<T>& c) { store_rows(c.d_o, c.tokens, x.V, o + (at.begin * x.HV + at.head) * x.V, x.HV * x.V); };
  walk(ctx, x, false, states.data(), prepare, sweep, finish);
  store_states(x, states, final_state);
}

template <class T>
void chunked_backward(Context& ctx, const Problem<T>& x, const ChunkMemory<T>& memory, const Gradients<T>& grads) {
  const int64_t size = padded(x.K) * padded(x.V), size_u = kChunk * padded(x.V), size_A = kChunk * kChunk;
  Scratch<T> d_states = padded_states(x, grads.d_final_state);
  const auto prepare = [&](const Place& at, Chunk<T>& c) {
    load(x, at, c);
    const T* d_o = grads.d_o ? grads.d_o + (at.begin * x.HV + at.head) * x.V : nullptr;
    load_rows(d_o, x.HV * x.V, c.tokens, x.V, T(1), c.d_o, c.R);
  };
  const auto sweep = [&](const Place& at, Chunk<T>& c, T* dS) {
    sweep_backward(c, memory.inverse + at.index * size_A, memory.states + at.index * size, dS);
  };
  const auto finish = [&](const Place& at, Chunk<T>& c) {
    finish_backward(c, memory.states + at.index * size, memory.u + at.index * size_u);
    store_gradients(x, at, c, grads);
  };
  walk(ctx, x, true, d_states.data(), prepare, sweep, finish);
  if (grads.d_initial_state) store_states(x, d_states, grads.d_initial_state);
}

template void chunked_forward<float>(Context&, const Problem<float>&, float*, float*, const ChunkMemory<float>&);
template void chunked_forward<double>(Context&, const Problem<double>&, double*, double*, const ChunkMemory<double>&);
template void chunked_backward<float>(Context&, const Problem<float>&, const ChunkMemory<float>&, const Gradients<float>&);
template void chunked_backward<double>(Context&, const Problem<double>&, const ChunkMemory<double>&, const Gradients<double>&);

}  // namespace braid::delta
