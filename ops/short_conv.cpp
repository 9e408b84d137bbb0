#include "ops/short_conv.h"

#include "ops/checks.h"
#include "ops/rows.h"

namespace braid {
namespace {

template <class T>
using Row = Eigen::Array<T, Eigen::Dynamic, 1>;

/// The inputs of a call as the convolution sees them: those before a sequence's start come from the initial state.
template <class T>
class Window {
 public:
  Window(const Tensor& x, const Tensor& weight, const Tensor& initial_state, const Sequences& seqs)
      : D(x.size(1)), W(weight.size(1)), x_(x.data<T>()), initial_(data_or_null<T>(initial_state)), seqs_(seqs), taps_(W, D), history_(W, D) {
    taps_ = matrix(weight.data<T>(), D, W).transpose();
  }

  /// body(n, t, length) for the tokens [begin, end): token n is number t of a sequence of `length` tokens.
  template <class Body>
  void each_token(int64_t begin, int64_t end, Body&& body) {
    const std::vector<int64_t>& starts = seqs_.cu_seqlens();
    sequence_ = std::upper_bound(starts.begin(), starts.end(), begin) - starts.begin() - 1;
    load_history();
    for (int64_t n = begin; n < end; ++n) {
      if (n >= seqs_.end(sequence_)) {
        while (n >= seqs_.end(sequence_)) ++sequence_;
        load_history();
      }
      body(n, n - seqs_.begin(sequence_), seqs_.length(sequence_));
    }
  }

  /// Weights of tap w, [D].
  ArrayMap<const T> tap(int64_t w) const { return array(taps_.data() + w * D, D); }

  /// The input that tap w meets at token n (number t of the sequence being walked), [D].
  ArrayMap<const T> input(int64_t n, int64_t t, int64_t w) const {
    const int64_t back = W - 1 - w;
    return array(back <= t ? x_ + (n - back) * D : history_.data() + (t + w) * D, D);
  }

  /// z at token n. The usual four taps in one pass.
  void convolve(int64_t n, int64_t t, ArrayMap<T> z) const {
    if (W == 4) {
      z = tap(0) * input(n, t, 0) + tap(1) * input(n, t, 1) + tap(2) * input(n, t, 2) + tap(3) * input(n, t, 3);
      return;
    }
    z = tap(0) * input(n, t, 0);
    for (int64_t w = 1; w < W; ++w) z += tap(w) * input(n, t, w);
  }

  const int64_t D, W;

 private:
  void load_history() {
    if (W == 1) return;
    if (initial_) history_.topRows(W - 1) = matrix(initial_ + sequence_ * D * (W - 1), D, W - 1).transpose();
    else history_.setZero();
  }

  const T* x_;
  const T* initial_;
  const Sequences& seqs_;
  Matrix<T> taps_, history_;  // [W, D]
  int64_t sequence_ = 0;
};

/// Tokens a range has: about a hundred ranges at most, so that the partial weight gradients stay small.
int64_t tokens_per_range(int64_t N, int64_t D) { return std::max(rows_per_range(D), (N + 127) / 128); }

template <class T>
void write_final_state(Context& ctx, const ShortConv::Inputs& in, const Sequences& seqs, T* final_state) {
  const int64_t D = in.x.size(1), tail = in.weight.size(1) - 1;
  const T* x = in.x.data<T>();
  const T* initial = data_or_null<T>(in.initial_state);
  ctx.parallel_for(seqs.count(), rows_per_range(D * std::max<int64_t>(1, tail)), [&](int64_t begin, int64_t end) {
    for (int64_t s = begin; s < end; ++s) {
      const int64_t length = seqs.length(s);
      for (int64_t j = 0; j < tail; ++j) {
        const int64_t t = length - tail + j;  // the input kept there, counted from the sequence's start
        for (int64_t d = 0; d < D; ++d) {
          T& kept = final_state[(s * D + d) * tail + j];
          if (t >= 0) kept = x[(seqs.begin(s) + t) * D + d];
          else kept = initial ? initial[(s * D + d) * tail + t + tail] : T(0);
        }
      }
    }
  });
}

/// d_initial_state: what the first tokens saw of it, and what of it is still in the final state.
template <class T>
void initial_state_gradient(Context& ctx, const T* d_z, const T* weight, const T* d_final, const Sequences& seqs, int64_t D, int64_t W,
                            T* d_initial) {
  const int64_t tail = W - 1;
  ctx.parallel_for(seqs.count(), rows_per_range(D * W), [&](int64_t begin, int64_t end) {
    for (int64_t s = begin; s < end; ++s) {
      const int64_t length = seqs.length(s);
      for (int64_t d = 0; d < D; ++d) {
        for (int64_t j = 0; j < tail; ++j) {
          T sum = d_final && j >= length ? d_final[(s * D + d) * tail + j - length] : T(0);
          if (d_z)
            for (int64_t t = 0; t <= j && t < length; ++t) sum += weight[d * W + j - t] * d_z[(seqs.begin(s) + t) * D + d];
          d_initial[(s * D + d) * tail + j] = sum;
        }
      }
    }
  });
}

template <class T>
void silu(ArrayMap<T> row) {
  row /= T(1) + (-row).exp();
}

/// d_z from d_o, which is there, of one token with z; `work` is scratch like it.
template <class T>
void pointwise_gradient(const ShortConv::Attrs& attrs, const Row<T>& z, Row<T>& work, ArrayMap<T> d) {
  const int64_t head = attrs.norm_dim;
  if (head > 0) {
    work = z;
    if (attrs.activation == ConvActivation::silu) silu<T>(array(work.data(), work.size()));
    for (int64_t at = 0; at < work.size(); at += head) {
      T* n = work.data() + at;
      const T r = normalize_row<T>(n, head, static_cast<T>(kConvNormEps), n);
      normalize_row_backward<T>(n, head, r, d.data() + at);
    }
  }
  if (attrs.activation != ConvActivation::silu) return;
  work = T(1) / (T(1) + (-z).exp());
  d *= work * (T(1) + z * (T(1) - work));
}

/// d_z from d_o, in place of it where it is the same, and d_weight (when wanted). z is computed again.
template <class T>
void activation_gradient(Context& ctx, const Window<T>& whole, const ShortConv::Attrs& attrs, const T* d_o, T* d_z, T* d_weight, int64_t N) {
  const int64_t D = whole.D, W = whole.W;
  Matrix<T> d_taps = Matrix<T>::Zero(W, D);
  sum_over_rows<T>(ctx, N, tokens_per_range(N, D), d_weight ? W * D : 0, d_taps.data(), [&](int64_t begin, int64_t end, T* partial) {
    Window<T> window = whole;
    Row<T> z(D), work(D);
    window.each_token(begin, end, [&](int64_t n, int64_t t, int64_t) {
      if (d_z != d_o) {
        window.convolve(n, t, array(z.data(), D));
        array(d_z + n * D, D) = array(d_o + n * D, D);
        pointwise_gradient<T>(attrs, z, work, array(d_z + n * D, D));
      }
      if (!d_weight) return;
      for (int64_t w = 0; w < W; ++w) array(partial + w * D, D) += array(d_z + n * D, D) * window.input(n, t, w);
    });
  });
  if (d_weight) matrix(d_weight, D, W) = d_taps.transpose();
}

/// d_x from d_z (null: zero) and d_final_state (null: zero).
template <class T>
void input_gradient(Context& ctx, const Window<T>& whole, const T* d_z, const T* d_final, const Sequences& seqs, T* d_x, int64_t N) {
  const int64_t D = whole.D, W = whole.W, tail = W - 1;
  ctx.parallel_for(N, tokens_per_range(N, D), [&](int64_t begin, int64_t end) {
    Window<T> window = whole;
    int64_t s = 0;
    window.each_token(begin, end, [&](int64_t n, int64_t t, int64_t length) {
      auto d_row = array(d_x + n * D, D);
      if (d_z && W == 4 && t + 3 < length) {
        const T* at = d_z + n * D;
        d_row = window.tap(3) * array(at, D) + window.tap(2) * array(at + D, D) + window.tap(1) * array(at + 2 * D, D) +
                window.tap(0) * array(at + 3 * D, D);
      } else {
        d_row.setZero();
        for (int64_t later = 0; d_z && later < W && t + later < length; ++later) d_row += window.tap(tail - later) * array(d_z + (n + later) * D, D);
      }
      const int64_t j = t - length + tail;  // where the final state keeps this input
      if (!d_final || j < 0) return;
      while (n >= seqs.end(s)) ++s;
      for (int64_t d = 0; d < D; ++d) d_row[d] += d_final[(s * D + d) * tail + j];
    });
  });
}

}  // namespace

ShortConv::Outputs ShortConv::allocate(Context& ctx, const Inputs& in, const Attrs& attrs) {
  check_tensor(name, "x", in.x, {{"N"}, {"D"}});
  const DType acc = accumulator(in.x.dtype());
  const int64_t N = in.x.size(0), D = in.x.size(1), S = attrs.seqs.count();
  check_tensor(name, "weight", in.weight, {{"D", D}, {"W"}}, acc);
  const int64_t W = in.weight.size(1);
  BRAID_CHECK(W >= 1, name, ": weight must have a width W of at least 1, got ", in.weight.shape());
  BRAID_CHECK(attrs.norm_dim >= 0 && (attrs.norm_dim == 0 || D % attrs.norm_dim == 0), name, ": norm_dim must divide D = ", D, ", got ",
              attrs.norm_dim);
  if (in.initial_state) check_tensor(name, "initial_state", in.initial_state, {{"S", S}, {"D", D}, {"W - 1", W - 1}}, acc);
  attrs.seqs.require_tokens(name, "x", N);
  return {Tensor::empty(ctx, in.x.shape(), in.x.dtype()), Tensor::empty(ctx, {S, D, W - 1}, acc)};
}

ShortConv::Saved ShortConv::forward_cpu(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out) {
  const int64_t N = in.x.size(0), D = in.x.size(1);
  dispatch_real(name, in.x.dtype(), [&]<class T>() {
    const Window<T> whole(in.x, in.weight, in.initial_state, attrs.seqs);
    T* o = out.o.data<T>();
    ctx.parallel_for(N, tokens_per_range(N, D), [&](int64_t begin, int64_t end) {
      Window<T> window = whole;
      window.each_token(begin, end, [&](int64_t n, int64_t t, int64_t) {
        auto row = array(o + n * D, D);
        window.convolve(n, t, row);
        if (attrs.activation == ConvActivation::silu) silu<T>(row);
        for (int64_t at = 0; attrs.norm_dim > 0 && at < D; at += attrs.norm_dim)
          normalize_row<T>(row.data() + at, attrs.norm_dim, static_cast<T>(kConvNormEps), row.data() + at);
      });
    });
    write_final_state<T>(ctx, in, attrs.seqs, out.final_state.data<T>());
  });
  return {in.x, in.weight, in.initial_state};
}

void ShortConv::backward_cpu(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in) {
  const int64_t N = saved.x.size(0), D = saved.x.size(1), W = saved.weight.size(1);
  dispatch_real(name, saved.x.dtype(), [&]<class T>() {
    const Window<T> whole(saved.x, saved.weight, saved.initial_state, attrs.seqs);
    const T* d_final = data_or_null<T>(d_out.final_state);
    T* d_weight = data_or_null<T>(d_in.weight);
    Tensor d_z = d_out.o;
    if (d_out.o) {
      if (attrs.activation != ConvActivation::none || attrs.norm_dim > 0) d_z = Tensor::empty(ctx, d_out.o.shape(), d_out.o.dtype());
      activation_gradient<T>(ctx, whole, attrs, d_out.o.data<T>(), d_z.data<T>(), d_weight, N);
    } else if (d_weight) {
      fill_zero(ctx, d_in.weight);
    }
    const T* d_z_data = data_or_null<T>(d_z);
    if (d_in.x) input_gradient<T>(ctx, whole, d_z_data, d_final, attrs.seqs, d_in.x.data<T>(), N);
    if (d_in.initial_state) initial_state_gradient<T>(ctx, d_z_data, saved.weight.data<T>(), d_final, attrs.seqs, D, W, d_in.initial_state.data<T>());
  });
}

}  // namespace braid
