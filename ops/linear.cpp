#include "ops/linear.h"

#include "ops/checks.h"
#include "ops/gemm.h"
#include "ops/rows.h"

namespace braid {
namespace {

/// Product of all extents but the last.
int64_t leading_size(const Tensor& tensor) {
  int64_t count = 1;
  for (int i = 0; i + 1 < tensor.rank(); ++i) count *= tensor.size(i);
  return count;
}

template <class T>
void repeat_row(Context& ctx, const T* row, int64_t rows, int64_t size, T* to) {
  ctx.parallel_for(rows, rows_per_range(size), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) std::copy(row, row + size, to + i * size);
  });
}

template <class T>
void sum_rows(Context& ctx, const T* from, int64_t rows, int64_t size, T* sum) {
  std::fill(sum, sum + size, T(0));
  sum_over_rows<T>(ctx, rows, rows_per_range(size), size, sum, [&](int64_t begin, int64_t end, T* partial) {
    for (int64_t row = begin; row < end; ++row) array(partial, size) += array(from + row * size, size);
  });
}

}  // namespace

Linear::Outputs Linear::allocate(Context& ctx, const Inputs& in, const Attrs&) {
  BRAID_CHECK(in.x && in.x.rank() >= 1 && is_floating(in.x.dtype()), name, ": x must be floating [..., in], got ", in.x.dtype(), " ", in.x.shape());
  check_tensor(name, "weight", in.weight, {{"out"}, {"in", in.x.size(-1)}}, in.x.dtype());
  const int64_t out_size = in.weight.size(0);
  if (in.bias) {
    const DType acc = accumulator(in.x.dtype());
    check_tensor(name, "bias", in.bias, {{"out", out_size}}, in.bias.dtype() == in.x.dtype() ? in.x.dtype() : acc);
  }
  Shape shape = in.x.shape();
  shape.set(-1, out_size);
  return {Tensor::empty(ctx, shape, in.x.dtype())};
}

Linear::Saved Linear::forward_cpu(Context& ctx, const Inputs& in, const Attrs&, Outputs& out) {
  const int64_t rows = leading_size(in.x), in_size = in.weight.size(1), out_size = in.weight.size(0);
  dispatch_real(name, in.x.dtype(), [&]<class T>() {
    T* y = out.y.data<T>();
    if (in.bias) repeat_row(ctx, in.bias.data<T>(), rows, out_size, y);
    gemm<T>(ctx, false, true, rows, out_size, in_size, T(1), in.x.data<T>(), in_size, in.weight.data<T>(), in_size, in.bias ? T(1) : T(0), y,
            out_size);
  });
  return {in.x, in.weight};
}

void Linear::backward_cpu(Context& ctx, const Saved& saved, const Attrs&, const Outputs& d_out, Inputs& d_in) {
  const int64_t rows = leading_size(saved.x), in_size = saved.weight.size(1), out_size = saved.weight.size(0);
  dispatch_real(name, saved.x.dtype(), [&]<class T>() {
    const T* d_y = d_out.y.data<T>();
    if (d_in.x) {
      gemm<T>(ctx, false, false, rows, in_size, out_size, T(1), d_y, out_size, saved.weight.data<T>(), in_size, T(0), d_in.x.data<T>(), in_size);
    }
    if (d_in.weight) {
      gemm<T>(ctx, true, false, out_size, in_size, rows, T(1), d_y, out_size, saved.x.data<T>(), in_size, T(1), d_in.weight.data<T>(), in_size);
    }
    if (d_in.bias) sum_rows(ctx, d_y, rows, out_size, d_in.bias.data<T>());
  });
}

}  // namespace braid
