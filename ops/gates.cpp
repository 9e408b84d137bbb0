#include "ops/gates.h"

#include "ops/checks.h"
#include "ops/functions.h"
#include "ops/lanes.h"
#include "ops/rows.h"

namespace braid {
namespace {

constexpr double kMaxLogInverse = 80;  // 1/a of a forget gate counts as at most e^80: squares of sums stay finite in float32

/// log a, by whichever form loses nothing. `log_bound` = log lb, `log_rest` = log(1 − lb).
template <class T>
Lanes<T> log_forget_gate(const Lanes<T>& f, const Lanes<T>& bound, const Lanes<T>& log_bound, const Lanes<T>& log_rest) {
  const Lanes<T> one(1);
  const Lanes<T> input_gate = (one - bound) * functions::sigmoid(-f);
  // a ≥ 1/2: 1 − a is known to full relative precision. Else log(lb + (1 − lb)·sigmoid(f)) as a sum of exponentials, because the
  // sigmoid may be too small for a number.
  const Lanes<T> near_one = log1p(-minimum(input_gate, Lanes<T>(T(0.75))));
  const Lanes<T> rest = log_rest + functions::log_sigmoid(f);
  const Lanes<T> small = maximum(log_bound, rest) + log1p(exp(-abs(log_bound - rest)));
  return where_less(Lanes<T>(T(0.5)), input_gate, small, near_one);
}

/// log lb and log(1 − lb) of every channel; −infinity as a number that arithmetic may be done with.
template <class T>
struct BoundLogs {
  Vector<T> log_bound, log_rest;

  explicit BoundLogs(const Tensor& lower_bound) {
    const auto bound = array(static_cast<const T*>(lower_bound.data<T>()), lower_bound.numel());
    const T least = std::numeric_limits<T>::lowest() / 8;
    log_bound = (bound > T(0)).select(bound.log(), least);
    log_rest = (bound < T(1)).select((-bound).log1p(), least);
  }
};

}  // namespace

HgrnGate::Outputs HgrnGate::allocate(Context& ctx, const Inputs& in, const Attrs&) {
  check_tensor(name, "f", in.f, {{"N"}, {"D"}});
  const DType acc = accumulator(in.f.dtype());
  if (in.lower_bound) check_tensor(name, "lower_bound", in.lower_bound, {{"D", in.f.size(1)}}, acc);
  return {Tensor::empty(ctx, in.f.shape(), acc), Tensor::empty(ctx, in.f.shape(), in.f.dtype())};
}

HgrnGate::Saved HgrnGate::forward_cpu(Context& ctx, const Inputs& in, const Attrs&, Outputs& out) {
  const int64_t N = in.f.size(0), D = in.f.size(1);
  dispatch_real(name, in.f.dtype(), [&]<class T>() {
    using L = Lanes<T>;
    const T *f = in.f.data<T>(), *lower_bound = data_or_null<T>(in.lower_bound);
    T *log_decay = out.log_decay.data<T>(), *input_gate = out.input_gate.data<T>();
    if (!lower_bound) {
      map_lanes(
          ctx, N * D, log_decay, [](const L& z) { return functions::log_sigmoid(z); }, f);
      map_lanes(
          ctx, N * D, input_gate, [](const L& z) { return functions::sigmoid(-z); }, f);
      return;
    }
    const BoundLogs<T> logs(in.lower_bound);
    ctx.parallel_for(N, rows_per_range(D), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        for_lanes(D, [&](int64_t d, auto count) {
          const L z = L::load(f + row * D + d, count), bound = L::load(lower_bound + d, count);
          const L log_a = log_forget_gate(z, bound, L::load(logs.log_bound.data() + d, count), L::load(logs.log_rest.data() + d, count));
          log_a.store(log_decay + row * D + d, count);
          ((L(1) - bound) * functions::sigmoid(-z)).store(input_gate + row * D + d, count);
        });
      }
    });
  });
  return {in.f, in.lower_bound, out.log_decay};
}

void HgrnGate::backward_cpu(Context& ctx, const Saved& saved, const Attrs&, const Outputs& d_out, Inputs& d_in) {
  const int64_t N = saved.f.size(0), D = saved.f.size(1);
  dispatch_real(name, saved.f.dtype(), [&]<class T>() {
    using L = Lanes<T>;
    const T *f = saved.f.data<T>(), *lower_bound = data_or_null<T>(saved.lower_bound), *log_decay = saved.log_decay.data<T>();
    const T *d_log_decay = data_or_null<T>(d_out.log_decay), *d_input_gate = data_or_null<T>(d_out.input_gate);
    T* d_f = data_or_null<T>(d_in.f);
    const Vector<T> log_rest = lower_bound ? BoundLogs<T>(saved.lower_bound).log_rest : Vector<T>::Zero(D);
    Vector<T> d_bound = Vector<T>::Zero(D);
    sum_over_rows<T>(ctx, N, rows_per_range(D), D, d_bound.data(), [&](int64_t begin, int64_t end, T* partial) {
      for (int64_t row = begin; row < end; ++row) {
        for_lanes(D, [&](int64_t d, auto count) {
          const int64_t i = row * D + d;
          const L z = L::load(f + i, count), log_a = L::load(log_decay + i, count), off = functions::sigmoid(-z);
          const L share = exp(minimum(L::load(log_rest.data() + d, count) + functions::log_sigmoid(z) - log_a, L(0)));  // (1 − lb)·s / a
          const L d_log = L::load_or_zero(d_log_decay, i, count), d_gate = L::load_or_zero(d_input_gate, i, count);
          const L rest = L(1) - L::load_or_zero(lower_bound, d, count);
          if (d_f) (off * (d_log * share - d_gate * rest * functions::sigmoid(z))).store(d_f + i, count);
          const L inverse = exp(minimum(-log_a, L(static_cast<T>(kMaxLogInverse))));
          (L::load(partial + d, count) + off * (d_log * inverse - d_gate)).store(partial + d, count);
        });
      }
    });
    if (d_in.lower_bound) array(d_in.lower_bound.data<T>(), D) = d_bound.array();
  });
}

LowerBound::Outputs LowerBound::allocate(Context& ctx, const Inputs& in, const Attrs& attrs) {
  check_tensor(name, "weights", in.weights, {{"L"}, {"D"}});
  BRAID_CHECK(attrs.layer >= 0 && attrs.layer < in.weights.size(0), name, ": layer must be in [0, ", in.weights.size(0), "), got ", attrs.layer);
  return {Tensor::empty(ctx, {in.weights.size(1)}, accumulator(in.weights.dtype()))};
}

LowerBound::Saved LowerBound::forward_cpu(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out) {
  const int64_t num_layers = in.weights.size(0), D = in.weights.size(1);
  Saved saved{Tensor::empty(ctx, in.weights.shape(), in.weights.dtype()), out.bound};
  dispatch_real(name, in.weights.dtype(), [&]<class T>() {
    for (int64_t d = 0; d < D; ++d) {
      const Eigen::InnerStride<> down(D);
      using Column = Eigen::Map<const Eigen::Array<T, Eigen::Dynamic, 1>, 0, Eigen::InnerStride<>>;
      const Column weights(in.weights.data<T>() + d, num_layers, down);
      Eigen::Array<T, Eigen::Dynamic, 1> p = (weights - weights.maxCoeff()).exp();
      p /= p.sum();
      out.bound.data<T>()[d] = p.segment(1, attrs.layer).sum();
      for (int64_t layer = 0; layer < num_layers; ++layer) saved.probabilities.data<T>()[layer * D + d] = p[layer];
    }
  });
  return saved;
}

void LowerBound::backward_cpu(Context&, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in) {
  const int64_t num_layers = saved.probabilities.size(0), D = saved.probabilities.size(1);
  dispatch_real(name, saved.probabilities.dtype(), [&]<class T>() {
    const auto bound = array(saved.bound.data<T>(), D), d_bound = array(d_out.bound.data<T>(), D);
    for (int64_t layer = 0; layer < num_layers; ++layer) {
      auto d_weights = array(d_in.weights.data<T>() + layer * D, D);
      const T inside = layer >= 1 && layer <= attrs.layer ? T(1) : T(0);
      if (attrs.layer == 0) d_weights.setZero();  // whatever d_bound is, infinite included
      else d_weights = array(saved.probabilities.data<T>() + layer * D, D) * (inside - bound) * d_bound;
    }
  });
}

GlaGate::Outputs GlaGate::allocate(Context& ctx, const Inputs& in, const Attrs& attrs) {
  check_tensor(name, "x", in.x, {{"N"}, {"D"}});
  BRAID_CHECK(attrs.normalizer > 0, name, ": normalizer must be above 0, got ", attrs.normalizer);
  return {Tensor::empty(ctx, in.x.shape(), accumulator(in.x.dtype()))};
}

GlaGate::Saved GlaGate::forward_cpu(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out) {
  dispatch_real(name, in.x.dtype(), [&]<class T>() {
    const Lanes<T> factor(static_cast<T>(1 / attrs.normalizer));
    const Lanes<T> least(attrs.clamp_min ? static_cast<T>(*attrs.clamp_min) : std::numeric_limits<T>::lowest());
    const auto value = [&](const Lanes<T>& x) { return maximum(functions::log_sigmoid(x) * factor, least); };
    map_lanes(ctx, in.x.numel(), out.log_decay.data<T>(), value, in.x.data<T>());
  });
  return {in.x};
}

void GlaGate::backward_cpu(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in) {
  dispatch_real(name, saved.x.dtype(), [&]<class T>() {
    const Lanes<T> factor(static_cast<T>(1 / attrs.normalizer));
    const Lanes<T> least(attrs.clamp_min ? static_cast<T>(*attrs.clamp_min) : std::numeric_limits<T>::lowest());
    const auto d_x = [&](const Lanes<T>& d, const Lanes<T>& x) {
      const Lanes<T> slope = d * functions::sigmoid(-x) * factor;
      return where_less(functions::log_sigmoid(x) * factor, least, Lanes<T>(0), slope);
    };
    map_lanes(ctx, saved.x.numel(), d_in.x.data<T>(), d_x, d_out.log_decay.data<T>(), saved.x.data<T>());
  });
}

GdnGate::Outputs GdnGate::allocate(Context& ctx, const Inputs& in, const Attrs&) {
  check_tensor(name, "a", in.a, {{"N"}, {"HV"}});
  const DType acc = accumulator(in.a.dtype());
  check_tensor(name, "A_log", in.A_log, {{"HV", in.a.size(1)}}, acc);
  check_tensor(name, "dt_bias", in.dt_bias, {{"HV", in.a.size(1)}}, acc);
  return {Tensor::empty(ctx, in.a.shape(), acc)};
}

GdnGate::Saved GdnGate::forward_cpu(Context& ctx, const Inputs& in, const Attrs&, Outputs& out) {
  const int64_t N = in.a.size(0), HV = in.a.size(1);
  dispatch_real(name, in.a.dtype(), [&]<class T>() {
    using L = Lanes<T>;
    const T *a = in.a.data<T>(), *A_log = in.A_log.data<T>(), *dt_bias = in.dt_bias.data<T>();
    T* log_decay = out.log_decay.data<T>();
    ctx.parallel_for(N, rows_per_range(HV), [&](int64_t begin, int64_t end) {
      for_lanes(HV, [&](int64_t h, auto count) {
        const L rate = -exp(L::load(A_log + h, count)), bias = L::load(dt_bias + h, count);
        for (int64_t i = begin * HV + h; i < end * HV; i += HV)
          (rate * functions::softplus(L::load(a + i, count) + bias)).store(log_decay + i, count);
      });
    });
  });
  return {in.a, in.A_log, in.dt_bias};
}

void GdnGate::backward_cpu(Context& ctx, const Saved& saved, const Attrs&, const Outputs& d_out, Inputs& d_in) {
  const int64_t N = saved.a.size(0), HV = saved.a.size(1);
  dispatch_real(name, saved.a.dtype(), [&]<class T>() {
    using L = Lanes<T>;
    const T *a = saved.a.data<T>(), *A_log = saved.A_log.data<T>(), *dt_bias = saved.dt_bias.data<T>(), *d_log_decay = d_out.log_decay.data<T>();
    T* d_a = data_or_null<T>(d_in.a);
    Vector<T> sums = Vector<T>::Zero(2 * HV);  // d_A_log, then d_dt_bias
    sum_over_rows<T>(ctx, N, rows_per_range(HV), 2 * HV, sums.data(), [&](int64_t begin, int64_t end, T* partial) {
      for_lanes(HV, [&](int64_t h, auto count) {
        const L rate = -exp(L::load(A_log + h, count)), bias = L::load(dt_bias + h, count);
        L d_rate(T(0)), d_bias(T(0));
        for (int64_t i = begin * HV + h; i < end * HV; i += HV) {
          const L z = L::load(a + i, count) + bias, d = L::load(d_log_decay + i, count) * rate, d_z = d * functions::sigmoid(z);
          d_rate += d * functions::softplus(z);
          d_bias += d_z;
          if (d_a) d_z.store(d_a + i, count);
        }
        d_rate.store(partial + h, count);
        d_bias.store(partial + HV + h, count);
      });
    });
    if (d_in.A_log) array(d_in.A_log.data<T>(), HV) = sums.head(HV).array();
    if (d_in.dt_bias) array(d_in.dt_bias.data<T>(), HV) = sums.tail(HV).array();
  });
}

}  // namespace braid
