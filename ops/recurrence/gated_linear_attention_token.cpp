// The definition: one token after the other.
#include "ops/recurrence/decay.h"
#include "ops/recurrence/gated_linear_attention_forms.h"

namespace braid::gla {
namespace {

/// a_t of each key channel, into `a` [K].
template <class T>
void decay_of(const Sizes& op, const T* log_decay, int64_t t, int64_t h, Eigen::Array<T, Eigen::Dynamic, 1>& a) {
  switch (op.decay) {
    case Decay::absent:
      a.setOnes();
      break;
    case Decay::constant:
      a.setConstant(std::exp(log_decay[h]));
      break;
    case Decay::head:
      a.setConstant(std::exp(log_decay[t * op.H + h]));
      break;
    case Decay::channel:
      a = array(log_decay + (t * op.H + h) * op.K, op.K);
      exponentiate(a.data(), op.K);
      break;
  }
}

}  // namespace

template <class T>
void forward_token(const Forward<T>& op, const Sequences& seqs, int64_t begin, int64_t end) {
  const int64_t H = op.H, K = op.K, V = op.V;
  Eigen::Array<T, Eigen::Dynamic, 1> a(K);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t s = unit / H, h = unit % H;
    auto S = matrix(op.final_state + unit * K * V, K, V);
    if (op.initial_state) S = matrix(op.initial_state + unit * K * V, K, V);
    else S.setZero();
    for (int64_t t = seqs.begin(s); t < seqs.end(s); ++t) {
      const int64_t row = t * H + h;
      decay_of(op, op.log_decay, t, h, a);
      S.array().colwise() *= a;
      S.noalias() += vector(op.k + row * K, K) * vector(op.v + row * V, V).transpose();
      vector(op.o + row * V, V).noalias() = static_cast<T>(op.scale) * S.transpose() * vector(op.q + row * K, K);
      if (op.states) matrix(op.states + row * K * V, K, V) = S;
    }
  }
}

template <class T>
void backward_token(const Backward<T>& op, const Sequences& seqs, int64_t begin, int64_t end) {
  const int64_t H = op.H, K = op.K, V = op.V;
  const T scale = static_cast<T>(op.scale);
  Eigen::Array<T, Eigen::Dynamic, 1> a(K), d_decay(K);
  Matrix<T> G(K, V), zero = Matrix<T>::Zero(K, V);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t s = unit / H, h = unit % H;
    if (op.d_final_state) G = matrix(op.d_final_state + unit * K * V, K, V);
    else G.setZero();
    double constant_sum = 0;
    for (int64_t t = seqs.end(s) - 1; t >= seqs.begin(s); --t) {
      const int64_t row = t * H + h;
      const auto q = vector(op.q + row * K, K), k = vector(op.k + row * K, K);
      const auto v = vector(op.v + row * V, V), d_o = vector(op.d_o + row * V, V);
      const T* initial = op.initial_state ? op.initial_state + unit * K * V : zero.data();
      const auto S = matrix(op.states + row * K * V, K, V);
      const auto S_before = matrix(t > seqs.begin(s) ? op.states + (row - H) * K * V : initial, K, V);
      G.noalias() += scale * q * d_o.transpose();
      if (op.d_q) vector(op.d_q + row * K, K).noalias() = scale * S * d_o;
      if (op.d_k) vector(op.d_k + row * K, K).noalias() = G * v;
      if (op.d_v) vector(op.d_v + row * V, V).noalias() = G.transpose() * k;
      decay_of(op, op.log_decay, t, h, a);
      G.array().colwise() *= a;
      if (!op.d_log_decay && !op.d_constant_decay) continue;
      d_decay = S_before.cwiseProduct(G).rowwise().sum().array();
      if (op.decay == Decay::channel) array(op.d_log_decay + row * K, K) = d_decay;
      else if (op.decay == Decay::head) op.d_log_decay[row] = d_decay.sum();
      else constant_sum += static_cast<double>(d_decay.sum());
    }
    if (op.d_constant_decay) op.d_constant_decay[unit] = constant_sum;
    if (op.d_initial_state) matrix(op.d_initial_state + unit * K * V, K, V) = G;
  }
}

template void forward_token(const Forward<float>&, const Sequences&, int64_t, int64_t);
template void forward_token(const Forward<double>&, const Sequences&, int64_t, int64_t);
template void backward_token(const Backward<float>&, const Sequences&, int64_t, int64_t);
template void backward_token(const Backward<double>&, const Sequences&, int64_t, int64_t);

}  // namespace braid::gla
