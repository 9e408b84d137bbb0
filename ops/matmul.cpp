#include "ops/matmul.h"

#include "core/dispatch.h"
#include "ops/checks.h"
#include "ops/gemm.h"

namespace braid {
namespace {

/// c = op(a) · op(b) of whole tensors, op(a) [m, k] and op(b) [k, n].
template <class T>
void product(Context& ctx, const Tensor& a, bool transpose_a, const Tensor& b, bool transpose_b, const Tensor& c) {
  const int64_t k = a.size(transpose_a ? 0 : 1);
  gemm<T>(ctx, transpose_a, transpose_b, c.size(0), c.size(1), k, T(1), a.data<T>(), a.size(1), b.data<T>(), b.size(1), T(0), c.data<T>(), c.size(1));
}

}  // namespace

Matmul::Outputs Matmul::allocate(Context& ctx, const Inputs& in, const Attrs& attrs) {
  const Dim rows{attrs.transpose_a ? "K" : "M"}, cols{attrs.transpose_a ? "M" : "K"};
  check_tensor(name, "a", in.a, {rows, cols});
  const Dim depth{"K", in.a.size(attrs.transpose_a ? 0 : 1)}, width{"N"};
  if (attrs.transpose_b) check_tensor(name, "b", in.b, {width, depth}, in.a.dtype());
  else check_tensor(name, "b", in.b, {depth, width}, in.a.dtype());
  return {Tensor::empty(ctx, {in.a.size(attrs.transpose_a ? 1 : 0), in.b.size(attrs.transpose_b ? 0 : 1)}, in.a.dtype())};
}

Matmul::Saved Matmul::forward_cpu(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out) {
  dispatch_real(name, in.a.dtype(), [&]<class T>() { product<T>(ctx, in.a, attrs.transpose_a, in.b, attrs.transpose_b, out.c); });
  return {in.a, in.b};
}

void Matmul::backward_cpu(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in) {
  const bool ta = attrs.transpose_a, tb = attrs.transpose_b;
  dispatch_real(name, saved.a.dtype(), [&]<class T>() {
    if (d_in.a && !ta) product<T>(ctx, d_out.c, false, saved.b, !tb, d_in.a);
    if (d_in.a && ta) product<T>(ctx, saved.b, tb, d_out.c, true, d_in.a);
    if (d_in.b && !tb) product<T>(ctx, saved.a, !ta, d_out.c, false, d_in.b);
    if (d_in.b && tb) product<T>(ctx, d_out.c, true, saved.a, ta, d_in.b);
  });
}

}  // namespace braid
