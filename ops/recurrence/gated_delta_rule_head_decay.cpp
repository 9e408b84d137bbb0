// A decay per head, or none: inside a chunk it is one factor G_i/G_j per pair of tokens.
#include "ops/eigen.h"
#include "ops/recurrence/gated_delta_rule_chunk.h"

namespace braid::delta {

using chunk::plain;
using chunk::Store;
using chunk::transposed;

template <class T>
void head_decay_forward(Chunk<T>& c) {
  const int64_t R = c.R, K = c.K;
  for (int64_t i = 0; i < R; ++i) {
    if (i == 0) array(c.D, R).setZero();
    else array(c.D + i * kChunk, R) = array(c.D + (i - 1) * kChunk, R) * c.a[i];
    c.D[i * kChunk + i] = T(1);
  }
  chunk::transpose(R, K, c.k, K, c.k_t, kChunk);
  chunk::multiply_into_lower(R, K, plain(c.k, K), c.k_t, kChunk, c.M, kChunk, Store::set);
  chunk::multiply_into_lower(R, K, plain(c.q, K), c.k_t, kChunk, c.P, kChunk, Store::set);
  for (int64_t i = 0; i < R; ++i) {
    const int64_t width = padded(i + 1);
    array(c.M + i * kChunk, width) *= array(c.D + i * kChunk, width);
    array(c.P + i * kChunk, width) *= array(c.D + i * kChunk, width);
    c.M[i * kChunk + i] = T(0);
  }
  T product = T(1);
  for (int64_t i = 0; i < R; ++i) {
    product *= c.a[i];
    array(c.q_in + i * K, K) = product * array(c.q + i * K, K);
    array(c.k_in + i * K, K) = product * array(c.k + i * K, K);
    array(c.k_out + i * K, K) = c.D[(R - 1) * kChunk + i] * array(c.k + i * K, K);
  }
  array(c.total, K).setConstant(product);
}

namespace {

/// The gradient of log G_i, summed backwards over tokens, is that of log_decay. Terms that reach a token and leave it again (the
/// diagonal of P, the last token's k⁻) cancel exactly and are left out, so that tiny gradients of strong decays keep their digits; those of
/// other pairs on one side of a token cancel too, in double.
template <class T>
void head_log_decay_gradient(Chunk<T>& c) {
  const int64_t R = c.R, K = c.K, last = c.tokens - 1;
  double d_G[kChunk] = {}, tail = c.total[0] * array(c.d_total, K).sum();
  T product = T(1);
  for (int64_t i = 0; i < c.tokens; ++i) {
    const int64_t r = i * kChunk;
    auto terms = array(c.scratch, padded(i + 1));
    terms = array(c.d_M + r, terms.size()) * array(c.M + r, terms.size()) + array(c.d_P + r, terms.size()) * array(c.P + r, terms.size());
    terms[i] = T(0);
    array(d_G, terms.size()) -= terms.template cast<double>();
    product *= c.a[i];
    const auto q = array(c.q + i * K, K), k = array(c.k + i * K, K);
    d_G[i] += terms.template cast<double>().sum() + product * (q * array(c.d_q_in + i * K, K) + k * array(c.d_k_in + i * K, K)).sum();
    if (i == last) continue;
    const T out = c.D[(R - 1) * kChunk + i] * (k * array(c.d_k_out + i * K, K)).sum();
    d_G[i] -= out;
    tail += out;
  }
  array(c.d_log_decay, R).setZero();
  for (int64_t i = last; i >= 0; --i) c.d_log_decay[i] = static_cast<T>(tail += d_G[i]);
}

}  // namespace

template <class T>
void head_decay_backward(Chunk<T>& c) {
  const int64_t R = c.R, K = c.K;
  if (c.decay == Decay::head) head_log_decay_gradient(c);
  for (int64_t i = 0; i < R; ++i) {
    const int64_t width = padded(i + 1);
    array(c.d_M + i * kChunk, width) *= array(c.D + i * kChunk, width);
    array(c.d_P + i * kChunk, width) *= array(c.D + i * kChunk, width);
  }
  T product = T(1);
  for (int64_t i = 0; i < R; ++i) {
    product *= c.a[i];
    array(c.d_q + i * K, K) = product * array(c.d_q_in + i * K, K);
    array(c.d_k + i * K, K) = product * array(c.d_k_in + i * K, K) + c.D[(R - 1) * kChunk + i] * array(c.d_k_out + i * K, K);
  }
  chunk::multiply_lower(R, K, plain(c.d_P, kChunk), c.k, K, c.d_q, K, Store::add);
  chunk::multiply_upper(R, K, transposed(c.d_P, kChunk), c.q, K, c.d_k, K, Store::add);
  chunk::multiply_lower(R, K, plain(c.d_M, kChunk), c.k, K, c.d_k, K, Store::add);
  chunk::multiply_upper(R, K, transposed(c.d_M, kChunk), c.k, K, c.d_k, K, Store::add);
}

template void head_decay_forward<float>(Chunk<float>&);
template void head_decay_forward<double>(Chunk<double>&);
template void head_decay_backward<float>(Chunk<float>&);
template void head_decay_backward<double>(Chunk<double>&);

}  // namespace braid::delta
