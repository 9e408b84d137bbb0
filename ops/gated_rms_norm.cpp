#include "ops/gated_rms_norm.h"

#include "ops/checks.h"
#include "ops/functions.h"
#include "ops/lanes.h"
#include "ops/rows.h"

namespace braid {
namespace {

template <class T>
struct Gate {
  Lanes<T> value, slope;
};

template <class T, GateActivation kActivation>
Gate<T> gate_of(const Lanes<T>& z) {
  const Lanes<T> s = functions::sigmoid(z), zs = z * s, s_slope = s * (Lanes<T>(1) - s);
  if constexpr (kActivation == GateActivation::sigmoid) return {s, s_slope};
  else return {zs, s + z * s_slope};
}

template <class T, GateActivation kActivation>
void forward_row(int64_t D, T eps, const T* x, const T* gate, const T* weight, T* y, T& rstd) {
  using L = Lanes<T>;
  L squares(T(0));
  for_lanes(D, [&](int64_t i, auto count) {
    const L value = L::load(x + i, count);
    squares += value * value;
  });
  rstd = T(1) / std::sqrt(squares.sum() / static_cast<T>(D) + eps);
  const L r(rstd);
  for_lanes(D, [&](int64_t i, auto count) {
    const L act = gate_of<T, kActivation>(L::load(gate + i, count)).value;
    (L::load(x + i, count) * r * L::load(weight + i, count) * act).store(y + i, count);
  });
}

/// Rows of one row's gradient; null pointers where no gradient is wanted.
template <class T>
struct RowGradients {
  T *d_x, *d_gate, *d_weight;  // d_weight is added to
};

template <class T, GateActivation kActivation>
void backward_row(int64_t D, T rstd, const T* x, const T* gate, const T* weight, const T* d_y, const RowGradients<T>& to) {
  using L = Lanes<T>;
  const L r(rstd);
  L products(T(0));  // g * n
  for_lanes(D, [&](int64_t i, auto count) {
    const L n = L::load(x + i, count) * r, w = L::load(weight + i, count), d = L::load(d_y + i, count);
    const Gate<T> act = gate_of<T, kActivation>(L::load(gate + i, count));
    const L g = d * w * act.value, dn = d * n;
    products += g * n;
    (L::load(to.d_weight + i, count) + dn * act.value).store(to.d_weight + i, count);
    if (to.d_gate) (dn * w * act.slope).store(to.d_gate + i, count);
    if (to.d_x) g.store(to.d_x + i, count);
  });
  if (!to.d_x) return;
  const L mean(products.sum() / static_cast<T>(D));
  for_lanes(D, [&](int64_t i, auto count) {
    const L n = L::load(x + i, count) * r;
    (r * (L::load(to.d_x + i, count) - n * mean)).store(to.d_x + i, count);
  });
}

/// body.operator()<T, activation>() for the dtype and activation at hand.
template <class Body>
void dispatch(DType dtype, GateActivation activation, Body&& body) {
  dispatch_real(GatedRmsNorm::name, dtype, [&]<class T>() {
    if (activation == GateActivation::sigmoid) body.template operator()<T, GateActivation::sigmoid>();
    else body.template operator()<T, GateActivation::swish>();
  });
}

}  // namespace

GatedRmsNorm::Outputs GatedRmsNorm::allocate(Context& ctx, const Inputs& in, const Attrs&) {
  BRAID_CHECK(in.x && in.x.rank() >= 1 && is_floating(in.x.dtype()), name, ": x must be floating [..., D], got ", in.x.dtype(), " ", in.x.shape());
  BRAID_CHECK(in.gate && in.gate.shape() == in.x.shape() && in.gate.dtype() == in.x.dtype(), name, ": gate must be ", in.x.dtype(), " ", in.x.shape(),
              " like x, got ", in.gate.dtype(), " ", in.gate.shape());
  check_tensor(name, "weight", in.weight, {{"D", in.x.size(-1)}}, accumulator(in.x.dtype()));
  return {Tensor::empty(ctx, in.x.shape(), in.x.dtype())};
}

GatedRmsNorm::Saved GatedRmsNorm::forward_cpu(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out) {
  const int64_t D = in.x.size(-1), rows = num_rows(in.x);
  Saved saved{in.x, in.gate, in.weight, Tensor::empty(ctx, {rows}, in.x.dtype())};
  dispatch(in.x.dtype(), attrs.activation, [&]<class T, GateActivation kActivation>() {
    const T *x = in.x.data<T>(), *gate = in.gate.data<T>(), *weight = in.weight.data<T>();
    T *y = out.y.data<T>(), *rstd = saved.rstd.data<T>();
    const T eps = static_cast<T>(attrs.eps);
    ctx.parallel_for(rows, rows_per_range(D), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        forward_row<T, kActivation>(D, eps, x + row * D, gate + row * D, weight, y + row * D, rstd[row]);
      }
    });
  });
  return saved;
}

void GatedRmsNorm::backward_cpu(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in) {
  const int64_t D = saved.x.size(-1), rows = num_rows(saved.x);
  dispatch(saved.x.dtype(), attrs.activation, [&]<class T, GateActivation kActivation>() {
    const T *x = saved.x.data<T>(), *gate = saved.gate.data<T>(), *weight = saved.weight.data<T>();
    const T *rstd = saved.rstd.data<T>(), *d_y = d_out.y.data<T>();
    T *d_x = data_or_null<T>(d_in.x), *d_gate = data_or_null<T>(d_in.gate);
    Vector<T> d_weight = Vector<T>::Zero(D);
    sum_over_rows<T>(ctx, rows, rows_per_range(D), D, d_weight.data(), [&](int64_t begin, int64_t end, T* partial) {
      for (int64_t row = begin; row < end; ++row) {
        const int64_t at = row * D;
        const RowGradients<T> to{d_x ? d_x + at : nullptr, d_gate ? d_gate + at : nullptr, partial};
        backward_row<T, kActivation>(D, rstd[row], x + at, gate + at, weight, d_y + at, to);
      }
    });
    if (d_in.weight) array(d_in.weight.data<T>(), D) = d_weight.array();
  });
}

}  // namespace braid
