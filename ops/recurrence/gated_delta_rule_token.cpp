// Token by token: the definition of gated_delta_rule and its gradient, as written in the header.
#include "ops/recurrence/decay.h"
#include "ops/recurrence/gated_delta_rule_forms.h"

namespace braid::delta {
namespace {

/// S ← diag(exp(log_decay)) S for token `n`, head `head`.
template <class T>
void apply_decay(const Problem<T>& x, int64_t n, int64_t head, MatrixMap<T> S) {
  const int64_t row = n * x.HV + head;
  if (x.decay == Decay::head) S *= std::exp(x.log_decay[row]);
  if (x.decay != Decay::channel) return;
  Eigen::Array<T, Eigen::Dynamic, 1> a = array(x.log_decay + row * x.K, x.K);
  exponentiate(a.data(), x.K);
  S.array().colwise() *= a;
}

template <class T>
void start_state(const Problem<T>& x, int64_t lane, MatrixMap<T> S) {
  if (x.initial_state) S = matrix(x.initial_state + lane * x.K * x.V, x.K, x.V);
  else S.setZero();
}

template <class T>
void forward_lane(const Problem<T>& x, int64_t lane, T* o, T* final_state, T* states) {
  const int64_t s = lane / x.HV, head = lane % x.HV, size = x.K * x.V, end = x.seqs.end(s);
  auto S = matrix(final_state + lane * size, x.K, x.V);
  start_state(x, lane, S);
  RowVector<T> u(x.V);
  for (int64_t n = x.seqs.begin(s); n < end; ++n) {
    const int64_t row = n * x.HV + head, query_row = n * x.H + x.query_head(head);
    const auto q = vector(x.q + query_row * x.K, x.K), k = vector(x.k + query_row * x.K, x.K);
    apply_decay(x, n, head, S);
    u = vector(x.v + row * x.V, x.V).transpose();
    u.noalias() -= k.transpose() * S;
    u *= x.beta[row];
    S.noalias() += k * u;
    matrix(o + row * x.V, 1, x.V).noalias() = x.scale * (q.transpose() * S);
    if (n + 1 < end) matrix(states + row * size, x.K, x.V) = S;
  }
}

template <class T>
void store_decay_gradient(const Problem<T>& x, int64_t row, const Matrix<T>& S, const Matrix<T>& dS, T* d_log_decay) {
  if (!d_log_decay || x.decay == Decay::none) return;
  if (x.decay == Decay::head) d_log_decay[row] = S.cwiseProduct(dS).sum();
  else vector(d_log_decay + row * x.K, x.K) = S.cwiseProduct(dS).rowwise().sum();
}

template <class T>
void backward_lane(const Problem<T>& x, int64_t lane, const T* final_state, const T* states, const Gradients<T>& grads) {
  const int64_t s = lane / x.HV, head = lane % x.HV, size = x.K * x.V, begin = x.seqs.begin(s), end = x.seqs.end(s);
  Matrix<T> S(x.K, x.V), dS = Matrix<T>::Zero(x.K, x.V);  // S: S' of the token at hand
  RowVector<T> e(x.V), u(x.V), d_u(x.V), d_o = RowVector<T>::Zero(x.V);
  Vector<T> d_k(x.K);
  if (grads.d_final_state) dS = matrix(grads.d_final_state + lane * size, x.K, x.V);
  for (int64_t n = end - 1; n >= begin; --n) {
    const int64_t row = n * x.HV + head, query_row = n * x.H + x.query_head(head);
    const auto q = vector(x.q + query_row * x.K, x.K), k = vector(x.k + query_row * x.K, x.K);
    const auto after = matrix(n + 1 < end ? states + row * size : final_state + lane * size, x.K, x.V);
    if (n > begin) S = matrix(states + (row - x.HV) * size, x.K, x.V);
    else start_state(x, lane, matrix(S.data(), x.K, x.V));
    apply_decay(x, n, head, matrix(S.data(), x.K, x.V));
    e = vector(x.v + row * x.V, x.V).transpose();
    e.noalias() -= k.transpose() * S;
    u = x.beta[row] * e;
    if (grads.d_o) d_o = x.scale * vector(grads.d_o + row * x.V, x.V).transpose();
    dS.noalias() += q * d_o;
    d_u.noalias() = k.transpose() * dS;
    if (grads.d_q) vector(grads.d_q + row * x.K, x.K).noalias() = after * d_o.transpose();
    if (grads.d_beta) grads.d_beta[row] = d_u.dot(e);
    d_u *= x.beta[row];  // from here on the gradient of v
    if (grads.d_v) matrix(grads.d_v + row * x.V, 1, x.V) = d_u;
    d_k.noalias() = dS * u.transpose();
    d_k.noalias() -= S * d_u.transpose();
    if (grads.d_k) vector(grads.d_k + row * x.K, x.K) = d_k;
    dS.noalias() -= k * d_u;
    store_decay_gradient(x, row, S, dS, grads.d_log_decay);
    apply_decay(x, n, head, matrix(dS.data(), x.K, x.V));
  }
  if (grads.d_initial_state) matrix(grads.d_initial_state + lane * size, x.K, x.V) = dS;
}

/// Lanes of a few tokens are taken together, so that a range costs some ten microseconds.
template <class T>
int64_t lanes_per_range(const Problem<T>& x) {
  const int64_t cost = std::max<int64_t>(1, x.seqs.num_tokens() * x.HV * x.K * x.V / std::max<int64_t>(1, x.num_lanes()));
  return std::max<int64_t>(1, (1 << 15) / cost);
}

}  // namespace

template <class T>
void token_forward(Context& ctx, const Problem<T>& problem, T* o, T* final_state, T* states) {
  ctx.parallel_for(problem.num_lanes(), lanes_per_range(problem), [&](int64_t begin, int64_t end) {
    for (int64_t lane = begin; lane < end; ++lane) forward_lane(problem, lane, o, final_state, states);
  });
}

template <class T>
void token_backward(Context& ctx, const Problem<T>& problem, const T* final_state, const T* states, const Gradients<T>& grads) {
  ctx.parallel_for(problem.num_lanes(), lanes_per_range(problem), [&](int64_t begin, int64_t end) {
    for (int64_t lane = begin; lane < end; ++lane) backward_lane(problem, lane, final_state, states, grads);
  });
}

template void token_forward<float>(Context&, const Problem<float>&, float*, float*, float*);
template void token_forward<double>(Context&, const Problem<double>&, double*, double*, double*);
template void token_backward<float>(Context&, const Problem<float>&, const float*, const float*, const Gradients<float>&);
template void token_backward<double>(Context&, const Problem<double>&, const double*, const double*, const Gradients<double>&);

}  // namespace braid::delta
