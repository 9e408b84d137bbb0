#include "ops/linear_cross_entropy.h"

#include <cmath>

#include "ops/checks.h"
#include "ops/gemm.h"
#include "ops/rows.h"

namespace braid {
namespace {

/// The tokens that have a target (or simply all of them), in order.
std::vector<int64_t> chosen_tokens(const Tensor& targets, bool all) {
  std::vector<int64_t> tokens;
  for (int64_t n = 0; n < targets.numel(); ++n)
    if (all || targets.data<int64_t>()[n] >= 0) tokens.push_back(n);
  return tokens;
}

/// Logits of one block of chosen tokens after the other, in the same scratch memory.
template <class T>
class LogitBlocks {
 public:
  LogitBlocks(Context& ctx, const Tensor& x, const Tensor& weight, std::vector<int64_t> tokens, int64_t block)
      : ctx_(ctx), x_(x.data<T>()), weight_(weight.data<T>()), tokens_(std::move(tokens)), D(x.size(1)), V(weight.size(0)) {
    block_ = std::min(block, static_cast<int64_t>(tokens_.size()));
    x_block_.resize(block_, D);
    logits_.resize(block_, V);
  }

  /// body(tokens, count): after the logits of these tokens are in logits().
  template <class Body>
  void each(Body&& body) {
    const int64_t num_tokens = static_cast<int64_t>(tokens_.size());
    for (int64_t begin = 0; begin < num_tokens; begin += block_) {
      const int64_t count = std::min(block_, num_tokens - begin);
      const int64_t* tokens = tokens_.data() + begin;
      for (int64_t i = 0; i < count; ++i) std::copy_n(x_ + tokens[i] * D, D, x_block_.data() + i * D);
      gemm<T>(ctx_, false, true, count, V, D, T(1), x_block_.data(), D, weight_, D, T(0), logits_.data(), V);
      body(tokens, count);
    }
  }

  T* logits(int64_t i) { return logits_.data() + i * V; }
  const T* x_block() const { return x_block_.data(); }
  int64_t block() const { return block_; }

 private:
  Context& ctx_;
  const T* x_;
  const T* weight_;
  std::vector<int64_t> tokens_;
  int64_t block_;
  Matrix<T> x_block_, logits_;

 public:
  const int64_t D, V;
};

/// loss and its scale from the losses of the tokens: summed in double, in the order of n.
template <class T>
void total_loss(const LinearCrossEntropy::Inputs& in, double denominator, LinearCrossEntropy::Outputs& out, const Tensor& loss_scale) {
  double sum = 0;
  int64_t num_targets = 0;
  for (int64_t n = 0; n < in.targets.numel(); ++n) {
    sum += static_cast<double>(out.token_loss.data<T>()[n]);
    num_targets += in.targets.data<int64_t>()[n] >= 0;
  }
  if (denominator == 0) denominator = static_cast<double>(std::max<int64_t>(1, num_targets));
  *out.loss.data<T>() = static_cast<T>(sum / denominator);
  *loss_scale.data<T>() = static_cast<T>(1 / denominator);
}

}  // namespace

int64_t LinearCrossEntropy::Attrs::block_tokens_for(int64_t V) const {
  constexpr int64_t kLogits = 1 << 21;
  return block_tokens > 0 ? block_tokens : std::max<int64_t>(64, kLogits / std::max<int64_t>(1, V));
}

LinearCrossEntropy::Outputs LinearCrossEntropy::allocate(Context& ctx, const Inputs& in, const Attrs& attrs) {
  check_tensor(name, "x", in.x, {{"N"}, {"D"}});
  const DType acc = accumulator(in.x.dtype());
  const int64_t N = in.x.size(0);
  check_tensor(name, "weight", in.weight, {{"V"}, {"D", in.x.size(1)}}, in.x.dtype());
  check_tensor(name, "targets", in.targets, {{"N", N}}, DType::i64);
  const int64_t V = in.weight.size(0);
  BRAID_CHECK(V > 0, name, ": weight must have at least one row, got ", in.weight.shape());
  BRAID_CHECK(attrs.denominator >= 0 && std::isfinite(attrs.denominator), name, ": denominator must not be negative, got ", attrs.denominator);
  BRAID_CHECK(attrs.block_tokens >= 0, name, ": block_tokens must not be negative, got ", attrs.block_tokens);
  if (ctx.on_cpu()) {
    const int64_t* targets = in.targets.data<int64_t>();
    for (int64_t n = 0; n < N; ++n)
      BRAID_CHECK(targets[n] >= -1 && targets[n] < V, name, ": target ", targets[n], " at index ", n, " is outside the vocabulary of ", V,
                  " (-1: no target)");
  }
  return {Tensor::empty(ctx, {}, acc), Tensor::empty(ctx, {N}, acc), attrs.predict ? Tensor::empty(ctx, {N}, DType::i64) : Tensor{}};
}

LinearCrossEntropy::Saved LinearCrossEntropy::forward_cpu(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out) {
  const int64_t N = in.x.size(0), V = in.weight.size(0);
  const int64_t* targets = in.targets.data<int64_t>();
  int64_t* prediction = data_or_null<int64_t>(out.prediction);
  Saved saved{in.x, in.weight, in.targets, Tensor::zeros(ctx, {N}, in.x.dtype()), Tensor::empty(ctx, {}, in.x.dtype()), {}, {}};
  fill_zero(ctx, out.token_loss);
  dispatch_real(name, in.x.dtype(), [&]<class T>() {
    T* token_loss = out.token_loss.data<T>();
    T* lse = saved.lse.data<T>();
    LogitBlocks<T> blocks(ctx, in.x, in.weight, chosen_tokens(in.targets, attrs.predict), attrs.block_tokens_for(V));
    blocks.each([&](const int64_t* tokens, int64_t count) {
      ctx.parallel_for(count, rows_per_range(V), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t n = tokens[i];
          auto logits = array(blocks.logits(i), V);
          const T highest = logits.maxCoeff();
          if (prediction) prediction[n] = std::find(logits.data(), logits.data() + V - 1, highest) - logits.data();
          if (targets[n] < 0) continue;
          const T gap = highest - logits[targets[n]], log_sum = std::log((logits - highest).exp().sum());
          token_loss[n] = gap + log_sum;
          lse[n] = highest + log_sum;
        }
      });
    });
    total_loss<T>(in, attrs.denominator, out, saved.loss_scale);
  });
  return saved;
}

void LinearCrossEntropy::backward_cpu(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in) {
  const int64_t D = saved.x.size(1), V = saved.weight.size(0);
  const int64_t* targets = saved.targets.data<int64_t>();
  if (d_in.x) fill_zero(ctx, d_in.x);
  dispatch_real(name, saved.x.dtype(), [&]<class T>() {
    const T* lse = saved.lse.data<T>();
    const T d_loss = d_out.loss ? *d_out.loss.data<T>() * *saved.loss_scale.data<T>() : T(0);
    const T* d_token_loss = data_or_null<T>(d_out.token_loss);
    LogitBlocks<T> blocks(ctx, saved.x, saved.weight, chosen_tokens(saved.targets, false), attrs.block_tokens_for(V));
    Matrix<T> d_x(d_in.x ? blocks.block() : 0, D);
    blocks.each([&](const int64_t* tokens, int64_t count) {
      ctx.parallel_for(count, rows_per_range(V), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t n = tokens[i];
          const T g = d_loss + (d_token_loss ? d_token_loss[n] : T(0));
          auto logits = array(blocks.logits(i), V);  // become d_logits
          logits = g * (logits - lse[n]).exp();
          logits[targets[n]] -= g;
        }
      });
      const T* d_logits = blocks.logits(0);
      if (d_in.weight) gemm<T>(ctx, true, false, V, D, count, T(1), d_logits, V, blocks.x_block(), D, T(1), d_in.weight.data<T>(), D);
      if (!d_in.x) return;
      gemm<T>(ctx, false, false, count, D, V, T(1), d_logits, V, saved.weight.data<T>(), D, T(0), d_x.data(), D);
      for (int64_t i = 0; i < count; ++i) std::copy_n(d_x.data() + i * D, D, d_in.x.data<T>() + tokens[i] * D);
    });
  });
}

}  // namespace braid
