// Backward of the chunked form. With X' for the gradient of X, dS that of the state after the tile, S the state before it:
//   A'_ts = d_o_t · v_s (s ≤ t),   (q * p)' = d_o Sᵀ,   (k * r)' = v dSᵀ,   d_v = (k * r) dS + Aᵀ d_o
//   dS ← diag(p_c) dS + (q * p)ᵀ d_o
//   d_q_t = p_t * (q * p)'_t + Σ_s A'_ts D_ts k_s,   d_k_s = r_s * (k * r)'_s + Σ_t A'_ts D_ts q_t
// A token's log decay scales every path that crosses it, whatever the path's ends: before or in the tile, in or after it:
//   d_log_decay_u = p_c rowsum(S * dS) + Σ_{t≥u} (q * p)_t (q * p)'_t + Σ_{s<u} (k * r)_s (k * r)'_s + Σ_{s<u≤t} A'_ts q_t k_s D_ts
// Only sums of the paths themselves: the shorter q · d_q − k · d_k would take small gradients as differences of large numbers.
#include "ops/recurrence/gated_linear_attention_tile.h"

namespace braid::gla {
namespace {

using tiles::kLanes;
using tiles::Pack;

/// What one thread works with.
template <class T>
struct Gradients {
  explicit Gradients(const Sizes& sizes) {
    const int64_t K = tiles::padded(sizes.K), V = tiles::padded(sizes.V);
    for (Matrix<T>* m : {&dqp, &dkr, &d_q, &d_k, &d_decay}) m->setZero(kTile, K);
    for (Matrix<T>* m : {&d_o, &d_v}) m->setZero(kTile, V);
    dA.setZero(kTile, kTile);
    dS.setZero(K, V);
    columns.setZero(K, kTile);
    for (Matrix<T>& state : states) state.setZero(K, V);
    for (int64_t i = 0; i < kKeptEvery / kTile; ++i) tile.emplace_back(sizes);
  }
  std::vector<Tile<T>> tile;
  std::array<Matrix<T>, kKeptEvery / kTile> states;  // before each tile
  Matrix<T> dS, dA, dqp, dkr, d_o, d_q, d_k, d_v;
  Matrix<T> d_decay;  // [kTile, K], per channel whatever the kind
  Matrix<T> columns;  // [K, kTile], scratch
};

/// to [kTile, K] = rows [kTile, V] · state [K, V]ᵀ
template <class T>
void times_transposed_state(Gradients<T>& g, Matrix<T>& transposed, const Matrix<T>& rows, const Matrix<T>& state, Matrix<T>& to) {
  tiles::transpose(kTile, rows.cols(), rows.data(), transposed.data());
  tiles::multiply(state.rows(), kTile, state.cols(), tiles::left(state), transposed.data(), g.columns.data());
  tiles::transpose(state.rows(), kTile, g.columns.data(), to.data());
}

/// The paths that begin before the tile or end after it, into d_decay.
template <class T>
void outer_decay_gradient(Gradients<T>& g, const Tile<T>& tile, const Matrix<T>& S) {
  RowVector<T> run = RowVector<T>::Zero(S.rows());
  for (int64_t t = kTile - 1; t >= 0; --t) {
    run += tile.qp.row(t).cwiseProduct(g.dqp.row(t));
    g.d_decay.row(t) = run;
  }
  for (int64_t c = 0; c < S.rows(); ++c) run[c] = tile.p(kTile - 1, c) * S.row(c).dot(g.dS.row(c));
  for (int64_t t = 0; t < kTile; ++t) {
    g.d_decay.row(t) += run;
    run += tile.kr.row(t).cwiseProduct(g.dkr.row(t));
  }
}

/// The paths within the tile, one decay for all channels. Into column 0 of d_decay, since the channels are summed later.
template <class T>
void inner_gradients(Gradients<T>& g, const Tile<T>& tile, bool wants_decay) {
  const int64_t K = tile.k.cols();
  for (int64_t s = 0; wants_decay && s < kTile; ++s) {
    T run = 0;
    for (int64_t t = kTile - 1; t > s; --t) g.d_decay(t, 0) += run += g.dA(s, t) * tile.A(s, t);
  }
  g.dA.array() *= tile.D.array();
  tiles::multiply(kTile, K, kTile, tiles::left_transposed(g.dA), tile.k.data(), g.d_q.data(), tiles::kAdd<T>);
  tiles::multiply(kTile, K, kTile, tiles::left(g.dA), tile.q.data(), g.d_k.data(), tiles::kAdd<T>);
}

/// The same with a decay per channel, for the channels of one pack.
template <class T>
void inner_channel_gradients(Gradients<T>& g, const Tile<T>& tile, int64_t channel, bool wants_decay) {
  const int64_t K = tile.k.cols();
  Pack<T> q[kTile], a[kTile], d_q[kTile], d_decay[kTile], path[kTile];
  for (int64_t t = 0; t < kTile; ++t) {
    q[t] = tiles::load(tile.q.data() + t * K + channel);
    a[t] = tiles::load(tile.a.data() + t * K + channel);
    d_q[t] = tiles::load(g.d_q.data() + t * K + channel);
    d_decay[t] = tiles::load(g.d_decay.data() + t * K + channel);
  }
  for (int64_t s = 0; s < kTile; ++s) {
    const Pack<T> k = tiles::load(tile.k.data() + s * K + channel);
    const T* dA = g.dA.data() + s * kTile;
    Pack<T> kD = k, D = Pack<T>{} + T(1);
    Pack<T> d_k = tiles::load(g.d_k.data() + s * K + channel) + dA[s] * q[s];
    d_q[s] += dA[s] * k;
    for (int64_t t = s + 1; t < kTile; ++t) {
      D *= a[t];
      kD *= a[t];
      const Pack<T> d_qk = dA[t] * q[t];
      d_q[t] += dA[t] * kD;
      d_k += d_qk * D;
      path[t] = d_qk * kD;
    }
    tiles::store(g.d_k.data() + s * K + channel, d_k);
    if (!wants_decay) continue;
    Pack<T> run = {};
    for (int64_t t = kTile - 1; t > s; --t) d_decay[t] += run += path[t];
  }
  for (int64_t t = 0; t < kTile; ++t) {
    tiles::store(g.d_q.data() + t * K + channel, d_q[t]);
    tiles::store(g.d_decay.data() + t * K + channel, d_decay[t]);
  }
}

/// Gradients of one tile but for the writing out; g.dS goes from the state after it to the one before.
template <class T>
void backward_tile(Gradients<T>& g, Tile<T>& tile, const Sizes& op, const Matrix<T>& S, bool wants_decay) {
  const int64_t K = S.rows(), V = S.cols();
  compute_scores(tile, op);
  times_transposed_state(g, tile.transposed, tile.v, g.dS, g.dkr);
  times_transposed_state(g, tile.transposed, g.d_o, S, g.dqp);
  tiles::multiply(kTile, kTile, V, tiles::left(tile.v), tile.transposed.data(), g.dA.data());
  tiles::multiply(kTile, V, K, tiles::left(tile.kr), g.dS.data(), g.d_v.data());
  tiles::multiply(kTile, V, kTile, tiles::left(tile.A), g.d_o.data(), g.d_v.data(), tiles::kAdd<T>);
  if (wants_decay) outer_decay_gradient(g, tile, S);
  const tiles::Keep<T> keep{tile.p.data() + (kTile - 1) * K, 1};
  tiles::multiply(K, V, kTile, tiles::left_transposed(tile.qp), g.d_o.data(), g.dS.data(), keep);
  g.d_q = tile.p.cwiseProduct(g.dqp);
  g.d_k = tile.r.cwiseProduct(g.dkr);
  if (op.decay != Decay::channel) return inner_gradients(g, tile, wants_decay);
  for (int64_t channel = 0; channel < K; channel += kLanes<T>) inner_channel_gradients(g, tile, channel, wants_decay);
}

/// Writes the gradients of `count` tokens of head h from token t on.
template <class T>
void store_gradients(const Gradients<T>& g, const Backward<T>& op, int64_t t, int64_t h, int64_t count, double& constant_sum) {
  const int64_t H = op.H, K = op.K, V = op.V, row = t * H + h;
  if (op.d_q) matrix(op.d_q + row * K, count, K, H * K) = static_cast<T>(op.scale) * g.d_q.topLeftCorner(count, K);
  if (op.d_k) matrix(op.d_k + row * K, count, K, H * K) = g.d_k.topLeftCorner(count, K);
  if (op.d_v) matrix(op.d_v + row * V, count, V, H * V) = g.d_v.topLeftCorner(count, V);
  if (op.d_constant_decay) constant_sum += static_cast<double>(g.d_decay.topLeftCorner(count, K).sum());
  if (!op.d_log_decay) return;
  if (op.decay == Decay::channel) matrix(op.d_log_decay + row * K, count, K, H * K) = g.d_decay.topLeftCorner(count, K);
  else matrix(op.d_log_decay + row, count, 1, H) = g.d_decay.topLeftCorner(count, K).rowwise().sum();
}

}  // namespace

template <class T>
void backward_chunked(const Backward<T>& op, const Sequences& seqs, const std::vector<int64_t>& first_state, int64_t begin, int64_t end) {
  const int64_t H = op.H, K = op.K, V = op.V;
  const bool wants_decay = op.d_log_decay || op.d_constant_decay;
  Gradients<T> g(op);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t s = unit / H, h = unit % H;
    g.dS.setZero();  // the padding too: a NaN of another sequence may be there
    auto d_state = g.dS.topLeftCorner(K, V);
    if (op.d_final_state) d_state = matrix(op.d_final_state + unit * K * V, K, V);
    double constant_sum = 0;
    for (int64_t chunk = first_state[s + 1] - first_state[s] - 1; chunk >= 0; --chunk) {
      const int64_t first = seqs.begin(s) + chunk * kKeptEvery, last = std::min(seqs.end(s), first + kKeptEvery);
      g.states[0].topLeftCorner(K, V) = matrix(op.states + ((first_state[s] + chunk) * H + h) * K * V, K, V);
      for (int64_t t = first, i = 0; t < last; t += kTile, ++i) {
        load_tokens(g.tile[i], op, op.q, op.k, op.v, op.log_decay, t, h, std::min(kTile, last - t));
        if (t + kTile >= last) continue;
        g.states[i + 1] = g.states[i];
        advance(g.states[i + 1], g.tile[i]);
      }
      for (int64_t i = (last - first - 1) / kTile; i >= 0; --i) {
        const int64_t t = first + i * kTile, count = std::min(kTile, last - t);
        tiles::load_tile(g.d_o, op.d_o + (t * H + h) * V, H * V, count, V);
        backward_tile(g, g.tile[i], op, g.states[i], wants_decay);
        store_gradients(g, op, t, h, count, constant_sum);
      }
    }
    if (op.d_constant_decay) op.d_constant_decay[unit] = constant_sum;
    if (op.d_initial_state) matrix(op.d_initial_state + unit * K * V, K, V) = d_state;
  }
}

template void backward_chunked(const Backward<float>&, const Sequences&, const std::vector<int64_t>&, int64_t, int64_t);
template void backward_chunked(const Backward<double>&, const Sequences&, const std::vector<int64_t>&, int64_t, int64_t);

}  // namespace braid::gla
