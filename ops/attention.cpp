#include "ops/attention.h"

#include <cmath>

#include "ops/checks.h"
#include "ops/eigen.h"

namespace braid {
namespace {

// Sizes of the blocks of scores: fixed, so that sums do not depend on the number of threads, and small enough for the first cache.
constexpr int64_t kQueries = 64;
constexpr int64_t kKeys = 128;

/// A few queries of one sequence.
struct QueryBlock {
  int64_t sequence, begin, count;  // begin: counted from the sequence's first query
};

std::vector<QueryBlock> query_blocks(const Sequences& seqs, int64_t s) {
  std::vector<QueryBlock> blocks;
  for (int64_t begin = 0; begin < seqs.length(s); begin += kQueries) blocks.push_back({s, begin, std::min(kQueries, seqs.length(s) - begin)});
  return blocks;
}

/// Where everything lies and which keys a query sees.
template <class T>
class Layout {
 public:
  Layout(const Tensor& q, const Tensor& k, const Tensor& v, const Attention::Attrs& attrs)
      : H(q.size(1)), HK(k.size(1)), D(q.size(2)), DV(v.size(2)), scale(static_cast<T>(attrs.scale_for(D))), attrs_(attrs) {}

  int64_t first_query(const QueryBlock& block) const { return attrs_.q_seqs.begin(block.sequence) + block.begin; }
  int64_t position(const QueryBlock& block) const {
    return attrs_.keys().length(block.sequence) - attrs_.q_seqs.length(block.sequence) + block.begin;
  }
  int64_t first_key(int64_t position) const { return attrs_.window > 0 ? std::max<int64_t>(0, position - attrs_.window + 1) : 0; }

  bool sees_one_key(const QueryBlock& block, int64_t i) const { return first_key(position(block) + i) == position(block) + i; }

  /// Row-major [queries, dim] of head h from token `first` on, of a tensor [N, heads, dim].
  template <class U>
  static MatrixMap<U> rows(U* data, int64_t first, int64_t count, int64_t h, int64_t heads, int64_t dim) {
    return matrix(data + (first * heads + h) * dim, count, dim, heads * dim);
  }

  /// body(key, count, first): the blocks of keys that the block of queries sees; `first` counted in the sequence, `key` in all.
  template <class Body>
  void each_key_block(const QueryBlock& block, Body&& body) const {
    const int64_t end = position(block) + block.count, start = attrs_.keys().begin(block.sequence);
    for (int64_t first = first_key(position(block)); first < end; first += kKeys) body(start + first, std::min(kKeys, end - first), first);
  }

  /// body(row, begin, count): the columns of a block of scores, keys from `first` on, that each query sees; the others are zeroed.
  template <class Body>
  void each_visible(const QueryBlock& block, int64_t first, Matrix<T>& scores, Body&& body) const {
    const int64_t num_keys = scores.cols();
    for (int64_t i = 0; i < block.count; ++i) {
      const int64_t p = position(block) + i;
      const int64_t begin = std::clamp<int64_t>(first_key(p) - first, 0, num_keys);
      const int64_t end = std::clamp<int64_t>(p + 1 - first, begin, num_keys);
      T* row = scores.data() + i * num_keys;
      if (begin > 0) array(row, begin).setZero();
      if (end < num_keys) array(row + end, num_keys - end).setZero();
      if (begin < end) body(i, begin, end - begin);
    }
  }

  const int64_t H, HK, D, DV;
  const T scale;

 private:
  const Attention::Attrs& attrs_;
};

/// One block of queries of one head: softmax over key blocks with a running maximum m and sum l per query.
template <class T>
void attend(const Layout<T>& at, const QueryBlock& block, int64_t h, const Attention::Inputs& in, Attention::Outputs& out) {
  const int64_t hk = h / (at.H / at.HK), first_query = at.first_query(block);
  const Matrix<T> q = at.scale * at.rows(in.q.template data<T>(), first_query, block.count, h, at.H, at.D);
  Matrix<T> scores, o = Matrix<T>::Zero(block.count, at.DV);
  Vector<T> m = Vector<T>::Constant(block.count, -std::numeric_limits<T>::infinity()), l = Vector<T>::Zero(block.count);
  at.each_key_block(block, [&](int64_t key, int64_t num_keys, int64_t first) {
    scores.resize(block.count, num_keys);
    scores.noalias() = q * at.rows(in.k.template data<T>(), key, num_keys, hk, at.HK, at.D).transpose();
    at.each_visible(block, first, scores, [&](int64_t i, int64_t begin, int64_t count) {
      auto row = array(scores.data() + i * num_keys + begin, count);
      const T highest = std::max(m[i], row.maxCoeff());
      row = (row - highest).exp();
      const T shrink = std::exp(m[i] - highest);
      l[i] = l[i] * shrink + row.sum();
      o.row(i) *= shrink;
      m[i] = highest;
    });
    o.noalias() += scores * at.rows(in.v.template data<T>(), key, num_keys, hk, at.HK, at.DV);
  });
  at.rows(out.o.template data<T>(), first_query, block.count, h, at.H, at.DV) = l.cwiseInverse().asDiagonal() * o;
  T* lse = out.lse.template data<T>();
  for (int64_t i = 0; i < block.count; ++i) lse[(first_query + i) * at.H + h] = m[i] + std::log(l[i]);
}

/// Gradients of one block of queries of one head; adds to d_k and d_v of its key head.
template <class T>
void attend_backward(const Layout<T>& at, const QueryBlock& block, int64_t h, const Attention::Saved& saved, const Attention::Outputs& d_out,
                     const Attention::Inputs& d_in) {
  const int64_t hk = h / (at.H / at.HK), first_query = at.first_query(block);
  const Matrix<T> q = at.scale * at.rows(saved.q.template data<T>(), first_query, block.count, h, at.H, at.D);
  const Matrix<T> d_o = at.rows(d_out.o.template data<T>(), first_query, block.count, h, at.H, at.DV);
  Vector<T> lse(block.count), d_lse = Vector<T>::Zero(block.count);
  const T* given_d_lse = data_or_null<T>(d_out.lse);
  for (int64_t i = 0; i < block.count; ++i) {
    lse[i] = saved.lse.template data<T>()[(first_query + i) * at.H + h];
    if (given_d_lse) d_lse[i] = given_d_lse[(first_query + i) * at.H + h];
  }
  Vector<T> delta = d_o.cwiseProduct(at.rows(saved.o.template data<T>(), first_query, block.count, h, at.H, at.DV)).rowwise().sum() - d_lse;
  Matrix<T> p, d_s, d_q = Matrix<T>::Zero(block.count, at.D);
  at.each_key_block(block, [&](int64_t key, int64_t num_keys, int64_t first) {
    const auto k = at.rows(saved.k.template data<T>(), key, num_keys, hk, at.HK, at.D);
    const auto v = at.rows(saved.v.template data<T>(), key, num_keys, hk, at.HK, at.DV);
    p.resize(block.count, num_keys);
    d_s.resize(block.count, num_keys);
    p.noalias() = q * k.transpose();
    d_s.noalias() = d_o * v.transpose();
    at.each_visible(block, first, p, [&](int64_t i, int64_t begin, int64_t count) {
      auto row = array(p.data() + i * num_keys + begin, count);
      row = (row - lse[i]).exp();
      // A query of one key has o = v: both products of delta's difference are the same, not two roundings of it.
      if (at.sees_one_key(block, i)) delta[i] = d_s(i, begin) - d_lse[i];
    });
    d_s.array() = p.array() * (d_s.colwise() - delta).array();
    d_q.noalias() += d_s * k;
    if (d_in.k) at.rows(d_in.k.template data<T>(), key, num_keys, hk, at.HK, at.D).noalias() += d_s.transpose() * q;
    if (d_in.v) at.rows(d_in.v.template data<T>(), key, num_keys, hk, at.HK, at.DV).noalias() += p.transpose() * d_o;
  });
  if (d_in.q) at.rows(d_in.q.template data<T>(), first_query, block.count, h, at.H, at.D) = at.scale * d_q;
}

}  // namespace

double Attention::Attrs::scale_for(int64_t D) const { return scale ? *scale : 1 / std::sqrt(static_cast<double>(std::max<int64_t>(1, D))); }

Attention::Outputs Attention::allocate(Context& ctx, const Inputs& in, const Attrs& attrs) {
  check_tensor(name, "q", in.q, {{"Nq"}, {"H"}, {"D"}});
  const DType dtype = in.q.dtype();
  const int64_t Nq = in.q.size(0), H = in.q.size(1), D = in.q.size(2);
  check_tensor(name, "k", in.k, {{"Nk"}, {"HK"}, {"D", D}}, dtype);
  const int64_t Nk = in.k.size(0), HK = in.k.size(1);
  check_tensor(name, "v", in.v, {{"Nk", Nk}, {"HK", HK}, {"DV"}}, dtype);
  BRAID_CHECK(HK > 0 && H % HK == 0, name, ": q must have a multiple of the HK = ", HK, " heads of k, got H = ", H);
  BRAID_CHECK(attrs.window >= 0, name, ": window must not be negative, got ", attrs.window);
  BRAID_CHECK(!attrs.scale || std::isfinite(*attrs.scale), name, ": scale must be finite, got ", *attrs.scale);
  attrs.q_seqs.require_tokens(name, "q", Nq);
  const Sequences& keys = attrs.keys();
  keys.require_tokens(name, "k", Nk);
  const int64_t S = attrs.q_seqs.count();
  BRAID_CHECK(keys.count() == S, name, ": k_seqs must have S = ", S, " sequences like q_seqs, got ", keys.count());
  for (int64_t s = 0; s < S; ++s)
    BRAID_CHECK(keys.length(s) >= attrs.q_seqs.length(s), name, ": k_seqs must have at least as many tokens as q_seqs, ", attrs.q_seqs.length(s),
                " in sequence ", s, ", got ", keys.length(s));
  return {Tensor::empty(ctx, {Nq, H, in.v.size(2)}, dtype), Tensor::empty(ctx, {Nq, H}, accumulator(dtype))};
}

Attention::Saved Attention::forward_cpu(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out) {
  std::vector<QueryBlock> blocks;
  for (int64_t s = 0; s < attrs.q_seqs.count(); ++s) {
    const std::vector<QueryBlock> more = query_blocks(attrs.q_seqs, s);
    blocks.insert(blocks.end(), more.begin(), more.end());
  }
  dispatch_real(name, in.q.dtype(), [&]<class T>() {
    const Layout<T> at(in.q, in.k, in.v, attrs);
    ctx.parallel_for(static_cast<int64_t>(blocks.size()) * at.H, 1, [&](int64_t begin, int64_t end) {
      for (int64_t item = begin; item < end; ++item) attend(at, blocks[item / at.H], item % at.H, in, out);
    });
  });
  return {in.q, in.k, in.v, out.o, out.lse};
}

void Attention::backward_cpu(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in) {
  const Outputs given{d_out.o ? d_out.o : Tensor::zeros(ctx, saved.o.shape(), saved.o.dtype()), d_out.lse};
  if (d_in.k) fill_zero(ctx, d_in.k);
  if (d_in.v) fill_zero(ctx, d_in.v);
  dispatch_real(name, saved.q.dtype(), [&]<class T>() {
    const Layout<T> at(saved.q, saved.k, saved.v, attrs);
    // One thread has a whole key head of a sequence, so that nobody else adds to its d_k and d_v.
    ctx.parallel_for(attrs.q_seqs.count() * at.HK, 1, [&](int64_t begin, int64_t end) {
      for (int64_t item = begin; item < end; ++item) {
        const int64_t group = at.H / at.HK, first_head = item % at.HK * group;
        for (int64_t h = first_head; h < first_head + group; ++h)
          for (const QueryBlock& block : query_blocks(attrs.q_seqs, item / at.HK)) attend_backward(at, block, h, saved, given, d_in);
      }
    });
  });
}

}  // namespace braid
