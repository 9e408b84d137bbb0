#include "ops/rms_norm.h"

#include "ops/checks.h"
#include "ops/lanes.h"
#include "ops/rows.h"

namespace braid {

RmsNorm::Outputs RmsNorm::allocate(Context& ctx, const Inputs& in, const Attrs& attrs) {
  BRAID_CHECK(in.x && in.x.rank() >= 1 && is_floating(in.x.dtype()), name, ": x must be floating [..., D], got ", in.x.dtype(), " ", in.x.shape());
  check_tensor(name, "weight", in.weight, {{"D", in.x.size(-1)}}, accumulator(in.x.dtype()));
  if (!in.residual) return {Tensor::empty(ctx, in.x.shape(), in.x.dtype()), attrs.pass_x ? in.x : Tensor{}};
  BRAID_CHECK(in.residual.shape() == in.x.shape() && in.residual.dtype() == in.x.dtype(), name, ": residual must be ", in.x.dtype(), " ",
              in.x.shape(), " like x, got ", in.residual.dtype(), " ", in.residual.shape());
  return {Tensor::empty(ctx, in.x.shape(), in.x.dtype()), Tensor::empty(ctx, in.x.shape(), in.x.dtype())};
}

RmsNorm::Saved RmsNorm::forward_cpu(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out) {
  const int64_t D = in.x.size(-1), rows = num_rows(in.x);
  Saved saved{in.residual ? out.sum : in.x, in.weight, Tensor::empty(ctx, {rows}, in.x.dtype())};
  if (!in.residual && out.sum && out.sum.raw() != in.x.raw()) copy_into(ctx, out.sum, in.x);  // bfloat16 promoted around this call
  dispatch_real(name, in.x.dtype(), [&]<class T>() {
    using L = Lanes<T>;
    const T *weight = in.weight.data<T>(), *residual = data_or_null<T>(in.residual);
    ctx.parallel_for(rows, rows_per_range(D), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const T* x = in.x.data<T>() + row * D;
        T *sum = saved.sum.data<T>() + row * D, *y = out.y.data<T>() + row * D;
        L squares(T(0));
        for_lanes(D, [&](int64_t i, auto count) {
          const L value = L::load(x + i, count) + L::load_or_zero(residual, row * D + i, count);
          if (residual) value.store(sum + i, count);
          squares += value * value;
        });
        const T rstd = T(1) / std::sqrt(squares.sum() / static_cast<T>(D) + static_cast<T>(attrs.eps));
        saved.rstd.data<T>()[row] = rstd;
        const L r(rstd);
        for_lanes(D, [&](int64_t i, auto count) { (L::load(sum + i, count) * r * L::load(weight + i, count)).store(y + i, count); });
      }
    });
  });
  return saved;
}

void RmsNorm::backward_cpu(Context& ctx, const Saved& saved, const Attrs&, const Outputs& d_out, Inputs& d_in) {
  const int64_t D = saved.sum.size(-1), rows = num_rows(saved.sum);
  dispatch_real(name, saved.sum.dtype(), [&]<class T>() {
    using L = Lanes<T>;
    const T *weight = saved.weight.data<T>(), *d_y = data_or_null<T>(d_out.y), *d_sum = data_or_null<T>(d_out.sum);
    const Tensor& target = d_in.x ? d_in.x : d_in.residual;
    T* d_x = data_or_null<T>(target);
    Vector<T> d_weight = Vector<T>::Zero(D);
    sum_over_rows<T>(ctx, rows, rows_per_range(D), D, d_weight.data(), [&](int64_t begin, int64_t end, T* partial) {
      for (int64_t row = begin; row < end; ++row) {
        const int64_t at = row * D;
        const T* sum = saved.sum.data<T>() + at;
        const L r(saved.rstd.data<T>()[row]);
        L products(T(0));  // g * n
        for_lanes(D, [&](int64_t i, auto count) {
          const L dn = L::load_or_zero(d_y, at + i, count) * (L::load(sum + i, count) * r);
          products += dn * L::load(weight + i, count);
          (L::load(partial + i, count) + dn).store(partial + i, count);
        });
        if (!d_x) continue;
        const L mean(products.sum() / static_cast<T>(D));
        for_lanes(D, [&](int64_t i, auto count) {
          const L n = L::load(sum + i, count) * r, g = L::load_or_zero(d_y, at + i, count) * L::load(weight + i, count);
          (r * (g - n * mean) + L::load_or_zero(d_sum, at + i, count)).store(d_x + at + i, count);
        });
      }
    });
    if (d_in.weight) array(d_in.weight.data<T>(), D) = d_weight.array();
    if (d_in.residual) d_in.residual = target;
  });
}

}  // namespace braid
