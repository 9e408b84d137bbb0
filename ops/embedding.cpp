#include "ops/embedding.h"

#include "ops/checks.h"
#include "ops/rows.h"

namespace braid {

Embedding::Outputs Embedding::allocate(Context& ctx, const Inputs& in, const Attrs&) {
  check_tensor(name, "tokens", in.tokens, {{"N"}}, DType::i64);
  check_tensor(name, "weight", in.weight, {{"V"}, {"D"}});
  const int64_t N = in.tokens.numel(), V = in.weight.size(0);
  if (ctx.on_cpu()) {
    const int64_t* tokens = in.tokens.data<int64_t>();
    for (int64_t n = 0; n < N; ++n)
      BRAID_CHECK(tokens[n] >= 0 && tokens[n] < V, name, ": token ", tokens[n], " at index ", n, " is outside the vocabulary of ", V);
  }
  return {Tensor::empty(ctx, {N, in.weight.size(1)}, in.weight.dtype())};
}

Embedding::Saved Embedding::forward_cpu(Context& ctx, const Inputs& in, const Attrs&, Outputs& out) {
  const int64_t N = in.tokens.numel(), D = in.weight.size(1);
  const int64_t* tokens = in.tokens.data<int64_t>();
  dispatch_real(name, in.weight.dtype(), [&]<class T>() {
    const T* weight = in.weight.data<T>();
    T* y = out.y.data<T>();
    ctx.parallel_for(N, rows_per_range(D), [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) std::copy_n(weight + tokens[n] * D, D, y + n * D);
    });
  });
  return {in.tokens};
}

void Embedding::backward_cpu(Context& ctx, const Saved& saved, const Attrs&, const Outputs& d_out, Inputs& d_in) {
  if (!d_in.weight) return;
  const int64_t N = saved.tokens.numel(), D = d_in.weight.size(1);
  const int64_t* tokens = saved.tokens.data<int64_t>();
  dispatch_real(name, d_out.y.dtype(), [&]<class T>() {
    const T* d_y = d_out.y.data<T>();
    T* d_weight = d_in.weight.data<T>();
    // Every thread walks all tokens over channels of its own: no two touch the same element, and the order is always that of n.
    constexpr int64_t kChannels = 64;
    ctx.parallel_for(D, kChannels, [&](int64_t begin, int64_t end) {
      for (int64_t n = 0; n < N; ++n) array(d_weight + tokens[n] * D + begin, end - begin) += array(d_y + n * D + begin, end - begin);
    });
  });
}

}  // namespace braid
