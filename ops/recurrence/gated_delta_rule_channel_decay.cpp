// A decay per channel: blocks of 16 tokens. Inside a block every pair has its own product of decays; between blocks the product is
// split at the start of the later one, left_i · right_j, both factors at most 1.
#include "ops/eigen.h"
#include "ops/recurrence/gated_delta_rule_chunk.h"

namespace braid::delta {

using chunk::kBlock;
using chunk::plain;
using chunk::Store;
using chunk::transposed;

namespace {

template <class T>
void diagonal_block_forward(Chunk<T>& c, int64_t start, T* key) {
  const int64_t K = c.K, end = start + kBlock;
  for (int64_t j = start; j < end; ++j) {
    for (int64_t i = start; i <= j; ++i) c.M[i * kChunk + j] = c.P[i * kChunk + j] = T(0);
    c.P[j * kChunk + j] = vector(c.q + j * K, K).dot(vector(c.k + j * K, K));
    auto decayed = array(key, K);
    decayed = array(c.k + j * K, K);
    for (int64_t i = j + 1; i < end; ++i) {
      decayed *= array(c.a + i * K, K);
      c.M[i * kChunk + j] = vector(c.k + i * K, K).dot(decayed.matrix());
      c.P[i * kChunk + j] = vector(c.q + i * K, K).dot(decayed.matrix());
    }
  }
}

/// `key`, `grad`: [K] scratch. Adds to d_q and d_k (row role) and d_k_column; the diagonal of P is left to the caller.
template <class T>
void diagonal_block_backward(Chunk<T>& c, int64_t start, T* key, T* grad) {
  const int64_t K = c.K, end = start + kBlock;
  for (int64_t j = start; j < end; ++j) {
    auto decayed = array(key, K), sum = array(grad, K);
    decayed = array(c.k + j * K, K);
    for (int64_t i = j + 1; i < end; ++i) {
      decayed *= array(c.a + i * K, K);
      array(c.d_k + i * K, K) += c.d_M[i * kChunk + j] * decayed;
      array(c.d_q + i * K, K) += c.d_P[i * kChunk + j] * decayed;
    }
    sum.setZero();
    for (int64_t i = end - 1; i > j; --i)
      sum = (sum + c.d_M[i * kChunk + j] * array(c.k + i * K, K) + c.d_P[i * kChunk + j] * array(c.q + i * K, K)) * array(c.a + i * K, K);
    array(c.d_k_column + j * K, K) += sum;
  }
}

/// What the products between this block and earlier ones, and with the state, leave in the block's rows; and in `d_right`.
template <class T>
void block_rows_backward(Chunk<T>& c, int64_t block, T* d_right) {
  const int64_t K = c.K, start = block * kBlock;
  const T* keys = c.right_slab(block - 1);
  T *d_left_q = c.scratch, *d_left_k = c.k_t;  // [16, K]: k_t is not needed any more
  if (start > 0) {
    const T *d_M = c.d_M + start * kChunk, *d_P = c.d_P + start * kChunk;
    chunk::multiply(kBlock, K, start, plain(d_P, kChunk), keys, K, d_left_q, K, Store::set);
    chunk::multiply(kBlock, K, start, plain(d_M, kChunk), keys, K, d_left_k, K, Store::set);
    chunk::multiply(start, K, kBlock, transposed(d_P, kChunk), c.left_q + start * K, K, d_right, K, Store::add);
    chunk::multiply(start, K, kBlock, transposed(d_M, kChunk), c.left_k + start * K, K, d_right, K, Store::add);
  } else {
    matrix(d_left_q, kBlock, K).setZero();
    matrix(d_left_k, kBlock, K).setZero();
  }
  auto product = array(c.d_total, K);  // its gradient has been used
  product.setOnes();
  const auto before = array(c.before + block * K, K);
  for (int64_t r = 0; r < kBlock; ++r) {
    const int64_t at = (start + r) * K;
    product *= array(c.a + at, K);
    array(c.d_q + at, K) += product * (array(d_left_q + r * K, K) + before * array(c.d_q_in + at, K));
    array(c.d_k + at, K) += product * (array(d_left_k + r * K, K) + before * array(c.d_k_in + at, K));
  }
}

}  // namespace

template <class T>
void channel_decay_forward(Chunk<T>& c) {
  const int64_t R = c.R, K = c.K, blocks = R / kBlock;
  auto before = array(c.total, K);
  before.setOnes();
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t start = b * kBlock, end = start + kBlock;
    auto product = array(c.block_total + b * K, K);
    product.setOnes();
    array(c.before + b * K, K) = before;
    for (int64_t i = start; i < end; ++i) {
      product *= array(c.a + i * K, K);
      array(c.left_q + i * K, K) = array(c.q + i * K, K) * product;
      array(c.left_k + i * K, K) = array(c.k + i * K, K) * product;
      array(c.q_in + i * K, K) = array(c.left_q + i * K, K) * before;
      array(c.k_in + i * K, K) = array(c.left_k + i * K, K) * before;
    }
    if (b > 0) {
      chunk::transpose(start, K, c.right_slab(b - 1), K, c.k_t, kChunk);
      chunk::multiply(kBlock, start, K, plain(c.left_k + start * K, K), c.k_t, kChunk, c.M + start * kChunk, kChunk, Store::set);
      chunk::multiply(kBlock, start, K, plain(c.left_q + start * K, K), c.k_t, kChunk, c.P + start * kChunk, kChunk, Store::set);
    }
    diagonal_block_forward(c, start, c.k_t);
    T* right = c.right_slab(b);
    for (int64_t j = 0; j < start; ++j) array(right + j * K, K) = array(c.right_slab(b - 1) + j * K, K) * product;
    auto suffix = array(c.k_t, K);
    suffix.setOnes();
    for (int64_t j = end - 1; j >= start; --j) {
      array(right + j * K, K) = array(c.k + j * K, K) * suffix;
      suffix *= array(c.a + j * K, K);
    }
    before *= product;
  }
  c.k_out = c.right_slab(blocks - 1);
}

// As with a decay per head, terms that cancel exactly in the gradient of log_decay are left out of it.
template <class T>
void channel_decay_backward(Chunk<T>& c) {
  const int64_t R = c.R, K = c.K, last = c.tokens - 1;
  T* d_right = c.d_k_out;
  auto tail = array(c.tail, K), d_k_last = array(c.d_k_last, K);
  tail = array(c.total, K) * array(c.d_total, K);
  for (int64_t j = 0; j < last; ++j) tail += array(c.k_out + j * K, K) * array(d_right + j * K, K);
  d_k_last = array(d_right + last * K, K);
  array(d_right + last * K, K).setZero();
  array(c.d_q, R * K).setZero();
  array(c.d_k, R * K).setZero();
  array(c.d_k_column, R * K).setZero();
  for (int64_t b = R / kBlock - 1; b >= 0; --b) {
    const int64_t start = b * kBlock;
    auto suffix = array(c.k_t, K);
    suffix.setOnes();
    for (int64_t j = start + kBlock - 1; j >= start; --j) {
      array(c.d_k_column + j * K, K) += suffix * array(d_right + j * K, K);
      suffix *= array(c.a + j * K, K);
    }
    for (int64_t j = 0; j < start; ++j) array(d_right + j * K, K) *= array(c.block_total + b * K, K);
    diagonal_block_backward(c, start, c.k_t, c.scratch);
    block_rows_backward(c, b, d_right);
  }
  for (int64_t i = last; i >= 0; --i) {
    const int64_t at = i * K;
    const auto q = array(c.q + at, K), k = array(c.k + at, K);
    tail += q * array(c.d_q + at, K) + k * (array(c.d_k + at, K) - array(c.d_k_column + at, K));
    array(c.d_log_decay + at, K) = tail;
    const T d_same = c.d_P[i * kChunk + i];
    array(c.d_q + at, K) += d_same * k;
    array(c.d_k + at, K) += array(c.d_k_column + at, K) + d_same * q;
  }
  array(c.d_k + last * K, K) += d_k_last;
}

template void channel_decay_forward<float>(Chunk<float>&);
template void channel_decay_forward<double>(Chunk<double>&);
template void channel_decay_backward<float>(Chunk<float>&);
template void channel_decay_backward<double>(Chunk<double>&);

}  // namespace braid::delta
