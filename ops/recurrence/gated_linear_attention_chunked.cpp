// Forward of the chunked form, and what both directions share.
#include "ops/recurrence/decay.h"
#include "ops/recurrence/gated_linear_attention_tile.h"

namespace braid::gla {
namespace {

using tiles::kLanes;
using tiles::Pack;

template <class T>
void decays_per_head(Tile<T>& tile, const Sizes& op, const T* log_decay, int64_t t, int64_t h, int64_t count) {
  T a[kTile];
  const T constant = op.decay == Decay::constant ? std::exp(log_decay[h]) : T(1);
  for (int64_t i = 0; i < kTile; ++i) a[i] = i >= count ? T(1) : op.decay == Decay::constant ? constant : std::exp(log_decay[(t + i) * op.H + h]);
  T up_to = 1, after = 1;
  for (int64_t i = 0; i < kTile; ++i) {
    tile.p.row(i).setConstant(up_to *= a[i]);
    T decay = 1;
    for (int64_t j = i; j < kTile; ++j) tile.D(i, j) = j == i ? decay : decay *= a[j];
  }
  for (int64_t i = kTile - 1; i >= 0; --i) {
    tile.r.row(i).setConstant(after);
    after *= a[i];
  }
}

template <class T>
void decays_per_channel(Tile<T>& tile, const Sizes& op, const T* log_decay, int64_t t, int64_t h, int64_t count) {
  tiles::load_tile(tile.a, log_decay + (t * op.H + h) * op.K, op.H * op.K, count, op.K);
  exponentiate(tile.a.data(), tile.a.size());
  tile.p.row(0) = tile.a.row(0);
  for (int64_t i = 1; i < kTile; ++i) tile.p.row(i) = tile.p.row(i - 1).cwiseProduct(tile.a.row(i));
  tile.r.row(kTile - 1).setOnes();
  for (int64_t i = kTile - 2; i >= 0; --i) tile.r.row(i) = tile.r.row(i + 1).cwiseProduct(tile.a.row(i + 1));
}

/// Rows s of A for the columns t of pack J: A_ts = Σ_k k_sk (q_tk D_tsk), with D built up by multiplying from s = t downwards.
template <int J, class T>
void channel_scores(Tile<T>& tile) {
  constexpr int kFirst = J * kLanes<T>, kLast = kFirst + kLanes<T> - 1;
  const int64_t K = tile.k.cols();
  Pack<T> sum[kLast + 1] = {}, unit[kLanes<T>] = {};
  for (int lane = 0; lane < kLanes<T>; ++lane) unit[lane][lane] = 1;
  for (int64_t c = 0; c < K; ++c) {
    const Pack<T> q = tiles::load(tile.transposed.data() + c * kTile + kFirst);
    const T *k = tile.k.data() + c, *a = tile.a.data() + c;
    Pack<T> D = {};
    for (int s = kLast; s >= 0; --s) {
      if (s < kLast) D *= a[(s + 1) * K];
      if (s >= kFirst) D += unit[s - kFirst];
      sum[s] += (q * D) * k[s * K];
    }
  }
  for (int s = 0; s < kTile; ++s) tiles::store(tile.A.data() + s * kTile + kFirst, s <= kLast ? sum[s] : Pack<T>{});
}

template <class T, int... J>
void all_channel_scores(Tile<T>& tile, std::integer_sequence<int, J...>) {
  (channel_scores<J>(tile), ...);
}

}  // namespace

template <class T>
Tile<T>::Tile(const Sizes& sizes) {
  const int64_t K = tiles::padded(sizes.K), V = tiles::padded(sizes.V);
  for (Matrix<T>* m : {&q, &k, &qp, &kr}) m->setZero(kTile, K);
  for (Matrix<T>* m : {&a, &p, &r}) m->setOnes(kTile, K);
  v.setZero(kTile, V);
  D = Matrix<T>::Ones(kTile, kTile).template triangularView<Eigen::Upper>();
  A.setZero(kTile, kTile);
  transposed.setZero(std::max(K, V), kTile);
}

template <class T>
void load_tokens(Tile<T>& tile, const Sizes& op, const T* q, const T* k, const T* v, const T* log_decay, int64_t t, int64_t h, int64_t count) {
  const int64_t row = t * op.H + h;
  tiles::load_tile(tile.q, q + row * op.K, op.H * op.K, count, op.K, static_cast<T>(op.scale));
  tiles::load_tile(tile.k, k + row * op.K, op.H * op.K, count, op.K);
  tiles::load_tile(tile.v, v + row * op.V, op.H * op.V, count, op.V);
  if (op.decay == Decay::channel) decays_per_channel(tile, op, log_decay, t, h, count);
  else if (op.decay != Decay::absent) decays_per_head(tile, op, log_decay, t, h, count);
  tile.qp = tile.q.cwiseProduct(tile.p);
  tile.kr = tile.k.cwiseProduct(tile.r);
}

template <class T>
void compute_scores(Tile<T>& tile, const Sizes& op) {
  const int64_t K = tile.q.cols();
  tiles::transpose(kTile, K, tile.q.data(), tile.transposed.data());
  if (op.decay == Decay::channel) {
    all_channel_scores(tile, std::make_integer_sequence<int, kTile / kLanes<T>>());
    return;
  }
  tiles::multiply(kTile, kTile, K, tiles::left(tile.k), tile.transposed.data(), tile.A.data());
  tile.A.array() *= tile.D.array();
}

template <class T>
void forward_chunked(const Forward<T>& op, const Sequences& seqs, const std::vector<int64_t>& first_state, int64_t begin, int64_t end) {
  const int64_t H = op.H, K = op.K, V = op.V;
  Tile<T> tile(op);
  Matrix<T> S = Matrix<T>::Zero(tiles::padded(K), tiles::padded(V)), o(kTile, tiles::padded(V));
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t s = unit / H, h = unit % H;
    S.setZero();  // the padding too: a NaN of the sequence before may be there
    auto state = S.topLeftCorner(K, V);
    if (op.initial_state) state = matrix(op.initial_state + unit * K * V, K, V);
    for (int64_t t = seqs.begin(s); t < seqs.end(s); t += kTile) {
      const int64_t count = std::min(kTile, seqs.end(s) - t), chunk = (t - seqs.begin(s)) / kKeptEvery;
      if (op.states && (t - seqs.begin(s)) % kKeptEvery == 0) matrix(op.states + ((first_state[s] + chunk) * H + h) * K * V, K, V) = state;
      load_tokens(tile, op, op.q, op.k, op.v, op.log_decay, t, h, count);
      compute_scores(tile, op);
      tiles::multiply(kTile, o.cols(), S.rows(), tiles::left(tile.qp), S.data(), o.data());
      tiles::multiply(kTile, o.cols(), kTile, tiles::left_transposed(tile.A), tile.v.data(), o.data(), tiles::kAdd<T>);
      matrix(op.o + (t * H + h) * V, count, V, H * V) = o.topLeftCorner(count, V);
      advance(S, tile);
    }
    matrix(op.final_state + unit * K * V, K, V) = state;
  }
}

template struct Tile<float>;
template struct Tile<double>;
template void load_tokens(Tile<float>&, const Sizes&, const float*, const float*, const float*, const float*, int64_t, int64_t, int64_t);
template void load_tokens(Tile<double>&, const Sizes&, const double*, const double*, const double*, const double*, int64_t, int64_t, int64_t);
template void compute_scores(Tile<float>&, const Sizes&);
template void compute_scores(Tile<double>&, const Sizes&);
template void forward_chunked(const Forward<float>&, const Sequences&, const std::vector<int64_t>&, int64_t, int64_t);
template void forward_chunked(const Forward<double>&, const Sequences&, const std::vector<int64_t>&, int64_t, int64_t);

}  // namespace braid::gla
