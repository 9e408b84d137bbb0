#include "ops/rms_norm.h"

#include "ops/checks.h"
#include "ops/rows.h"

namespace braid {

RmsNorm::Outputs RmsNorm::allocate(Context& ctx, const Inputs& in, const Attrs&) {
  BRAID_CHECK(in.x && in.x.rank() >= 1 && is_floating(in.x.dtype()), name, ": x must be floating [..., D], got ", in.x.dtype(), " ", in.x.shape());
  check_tensor(name, "weight", in.weight, {{"D", in.x.size(-1)}}, accumulator(in.x.dtype()));
  if (!in.residual) return {Tensor::empty(ctx, in.x.shape(), in.x.dtype()), {}};
  BRAID_CHECK(in.residual.shape() == in.x.shape() && in.residual.dtype() == in.x.dtype(), name, ": residual must be ", in.x.dtype(), " ", in.x.shape(),
              " like x, got ", in.residual.dtype(), " ", in.residual.shape());
  return {Tensor::empty(ctx, in.x.shape(), in.x.dtype()), Tensor::empty(ctx, in.x.shape(), in.x.dtype())};
}

RmsNorm::Saved RmsNorm::forward_cpu(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out) {
  const int64_t D = in.x.size(-1), rows = num_rows(in.x);
  Saved saved{in.residual ? out.sum : in.x, in.weight, Tensor::empty(ctx, {rows}, in.x.dtype())};
  dispatch_real(name, in.x.dtype(), [&]<class T>() {
    const T* x = in.x.data<T>();
    const T* residual = data_or_null<T>(in.residual);
    const auto weight = array(in.weight.data<T>(), D);
    T* rstd = saved.rstd.data<T>();
    ctx.parallel_for(rows, rows_per_range(D), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        if (residual) array(out.sum.data<T>() + row * D, D) = array(x + row * D, D) + array(residual + row * D, D);
        const auto sum = array(saved.sum.data<T>() + row * D, D);
        rstd[row] = T(1) / std::sqrt(sum.square().mean() + static_cast<T>(attrs.eps));
        array(out.y.data<T>() + row * D, D) = sum * rstd[row] * weight;
      }
    });
  });
  return saved;
}

void RmsNorm::backward_cpu(Context& ctx, const Saved& saved, const Attrs&, const Outputs& d_out, Inputs& d_in) {
  const int64_t D = saved.sum.size(-1), rows = num_rows(saved.sum);
  dispatch_real(name, saved.sum.dtype(), [&]<class T>() {
    const T* sum = saved.sum.data<T>();
    const T* rstd = saved.rstd.data<T>();
    const T* d_y = data_or_null<T>(d_out.y);
    const T* d_sum = data_or_null<T>(d_out.sum);
    const Tensor& target = d_in.x ? d_in.x : d_in.residual;
    T* d_x = data_or_null<T>(target);
    const auto weight = array(saved.weight.data<T>(), D);
    Vector<T> d_weight = Vector<T>::Zero(D);
    sum_over_rows<T>(ctx, rows, rows_per_range(D), D, d_weight.data(), [&](int64_t begin, int64_t end, T* partial) {
      Eigen::Array<T, Eigen::Dynamic, 1> n(D), g(D);
      for (int64_t row = begin; row < end; ++row) {
        g.setZero();
        n = array(sum + row * D, D) * rstd[row];
        if (d_y) {
          array(partial, D) += array(d_y + row * D, D) * n;
          g = array(d_y + row * D, D) * weight;
        }
        if (!d_x) continue;
        array(d_x + row * D, D) = rstd[row] * (g - n * (g * n).mean());
        if (d_sum) array(d_x + row * D, D) += array(d_sum + row * D, D);
      }
    });
    if (d_in.weight) array(d_in.weight.data<T>(), D) = d_weight.array();
    if (d_in.residual) d_in.residual = target;
  });
}

}  // namespace braid
