#include "ops/linear.h"

#include "cuda/kernels/dense/bias.h"
#include "cuda/kernels/dense/matvec.h"
#include "cuda/kernels/norms/column_sums.h"
#include "cuda/kernels/operands.h"
#include "cuda/runtime/blas.h"
#include "ops/matmul.h"

namespace braid {

Linear::Saved Linear::forward_cuda(Context& ctx, const Inputs& in, const Attrs&, Outputs& out) {
  const cuda::Product product{.transpose_b = true, .m = cuda::num_rows(in.x), .n = in.weight.size(0), .k = in.weight.size(1)};
  const cuda::VectorProduct single{.weight = in.weight, .y = out.y};
  if (product.m == 1 && cuda::takes_vector(in.weight, in.x, out.y)) cuda::multiply_vector(ctx, in.x, {&single, 1});
  else cuda::multiply(ctx, product, in.x, in.weight, out.y);
  if (in.bias) cuda::add_bias(ctx, out.y, in.bias);
  return {in.x, in.weight};
}

void Linear::backward_cuda(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in) {
  const int64_t rows = cuda::num_rows(saved.x), width_out = saved.weight.size(0), width_in = saved.weight.size(1);
  if (d_in.x) cuda::multiply(ctx, {.add = attrs.adds_d_x, .m = rows, .n = width_in, .k = width_out}, d_out.y, saved.weight, d_in.x);
  if (d_in.weight) cuda::multiply(ctx, {.transpose_a = true, .add = true, .m = width_out, .n = width_in, .k = rows}, d_out.y, saved.x, d_in.weight);
  if (d_in.bias) cuda::sum_rows(ctx, d_out.y, d_in.bias);
}

Matmul::Saved Matmul::forward_cuda(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out) {
  const cuda::Product product{.transpose_a = attrs.transpose_a,
                              .transpose_b = attrs.transpose_b,
                              .m = out.c.size(0),
                              .n = out.c.size(1),
                              .k = in.a.size(attrs.transpose_a ? 0 : 1)};
  cuda::multiply(ctx, product, in.a, in.b, out.c);
  return {in.a, in.b};
}

void Matmul::backward_cuda(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in) {
  const int64_t m = d_out.c.size(0), n = d_out.c.size(1), k = saved.a.size(attrs.transpose_a ? 0 : 1);
  const bool ta = attrs.transpose_a, tb = attrs.transpose_b;
  if (d_in.a && !ta) cuda::multiply(ctx, {.transpose_b = !tb, .m = m, .n = k, .k = n}, d_out.c, saved.b, d_in.a);
  if (d_in.a && ta) cuda::multiply(ctx, {.transpose_a = tb, .transpose_b = true, .m = k, .n = m, .k = n}, saved.b, d_out.c, d_in.a);
  if (d_in.b && !tb) cuda::multiply(ctx, {.transpose_a = !ta, .m = k, .n = n, .k = m}, saved.a, d_out.c, d_in.b);
  if (d_in.b && tb) cuda::multiply(ctx, {.transpose_a = true, .transpose_b = ta, .m = n, .n = k, .k = m}, d_out.c, saved.a, d_in.b);
}

}  // namespace braid
