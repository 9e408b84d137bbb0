#include "ops/l2_norm.h"

#include "ops/lanes.h"
#include "ops/rows.h"

namespace braid {

L2Norm::Outputs L2Norm::allocate(Context& ctx, const Inputs& in, const Attrs&) {
  BRAID_CHECK(in.x && in.x.rank() >= 1 && is_floating(in.x.dtype()), name, ": x must be floating [..., D], got ", in.x.dtype(), " ", in.x.shape());
  return {Tensor::empty(ctx, in.x.shape(), in.x.dtype())};
}

L2Norm::Saved L2Norm::forward_cpu(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out) {
  const int64_t D = in.x.size(-1), rows = num_rows(in.x);
  Saved saved{in.x, Tensor::empty(ctx, {rows}, in.x.dtype())};
  dispatch_real(name, in.x.dtype(), [&]<class T>() {
    T* scale = saved.scale.data<T>();
    ctx.parallel_for(rows, rows_per_range(D), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const T* x = in.x.data<T>() + row * D;
        T* y = out.y.data<T>() + row * D;
        Lanes<T> squares(T(0));
        for_lanes(D, [&](int64_t i, auto count) {
          const auto value = Lanes<T>::load(x + i, count);
          squares += value * value;
        });
        scale[row] = T(1) / std::sqrt(squares.sum() + static_cast<T>(attrs.eps));
        const Lanes<T> r(scale[row]);
        for_lanes(D, [&](int64_t i, auto count) { (Lanes<T>::load(x + i, count) * r).store(y + i, count); });
      }
    });
  });
  return saved;
}

void L2Norm::backward_cpu(Context& ctx, const Saved& saved, const Attrs&, const Outputs& d_out, Inputs& d_in) {
  const int64_t D = saved.x.size(-1), rows = num_rows(saved.x);
  dispatch_real(name, saved.x.dtype(), [&]<class T>() {
    const T* scale = saved.scale.data<T>();
    ctx.parallel_for(rows, rows_per_range(D), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const T *x = saved.x.data<T>() + row * D, *d_y = d_out.y.data<T>() + row * D;
        T* d_x = d_in.x.data<T>() + row * D;
        const Lanes<T> r(scale[row]);
        Lanes<T> products(T(0));  // d_y * y
        for_lanes(D, [&](int64_t i, auto count) { products += Lanes<T>::load(d_y + i, count) * (Lanes<T>::load(x + i, count) * r); });
        const Lanes<T> along(products.sum());
        for_lanes(D, [&](int64_t i, auto count) {
          const Lanes<T> y = Lanes<T>::load(x + i, count) * r;
          (r * (Lanes<T>::load(d_y + i, count) - y * along)).store(d_x + i, count);
        });
      }
    });
  });
}

}  // namespace braid
