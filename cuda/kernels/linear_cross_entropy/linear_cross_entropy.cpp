#include "ops/linear_cross_entropy.h"

#include <algorithm>

#include "cuda/kernels/linear_cross_entropy/softmax.h"
#include "cuda/kernels/operands.h"
#include "cuda/runtime/blas.h"

namespace braid {
namespace {

/// Tokens of a block: enough for products to run at full speed, with 256 MB of logits at most where the caller says nothing.
int64_t block_rows(const LinearCrossEntropy::Attrs& attrs, int64_t N, int64_t V) {
  constexpr int64_t kLogits = 1 << 26;
  const int64_t wanted = attrs.block_tokens > 0 ? attrs.block_tokens : std::max<int64_t>(128, kLogits / V / 128 * 128);
  return std::min(wanted, N);
}

/// Products assume addresses aligned as an allocation's; a block of rows may begin elsewhere.
bool aligned_for_products(const Tensor& tensor) { return reinterpret_cast<uintptr_t>(tensor.raw()) % 256 == 0; }

Tensor product_rows(Context& ctx, const Tensor& tensor, int64_t begin, int64_t end) {
  const Tensor rows = tensor.slice(0, begin, end);
  if (aligned_for_products(rows)) return rows;
  const Tensor copy = Tensor::empty(ctx, rows.shape(), rows.dtype());
  copy_into(ctx, copy, rows);
  return copy;
}

/// d_x of a block, and what it adds to d_weight; either may be unwanted.
void multiply_gradients(Context& ctx, const Tensor& d_logits, const Tensor& x, const Tensor& weight, const Tensor& d_x, const Tensor& d_weight,
                        bool add) {
  const int64_t rows = x.size(0), D = x.size(1), V = weight.size(0);
  if (d_weight) cuda::multiply(ctx, {.transpose_a = true, .add = add, .m = V, .n = D, .k = rows}, d_logits, x, d_weight);
  if (!d_x) return;
  const Tensor target = aligned_for_products(d_x) ? d_x : Tensor::empty(ctx, d_x.shape(), d_x.dtype());
  cuda::multiply(ctx, {.m = rows, .n = D, .k = V}, d_logits, weight, target);
  if (target.raw() != d_x.raw()) copy_into(ctx, d_x, target);
}

}  // namespace

LinearCrossEntropy::Saved LinearCrossEntropy::forward_cuda(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out) {
  cuda::require_kernel_dtype(name, in.x.dtype());
  const int64_t N = in.x.size(0), D = in.x.size(1), V = in.weight.size(0), block = block_rows(attrs, N, V);
  const DType dtype = in.x.dtype();
  Saved saved{in.x, in.weight, in.targets, Tensor::empty(ctx, {N}, DType::f32), Tensor::empty(ctx, {}, DType::f32), {}, {}};
  cuda::launch_loss_scale(ctx, in.targets, attrs.denominator, saved.loss_scale);
  const bool with_gradients = ctx.tape && N > 0;
  if (with_gradients) {
    saved.d_x = Tensor::empty(ctx, in.x.shape(), dtype);
    saved.d_weight = Tensor::empty(ctx, in.weight.shape(), DType::f32);
  }
  const Tensor logits = Tensor::empty(ctx, {block, V}, DType::f32);
  const Tensor d_logits = !with_gradients || dtype == DType::f32 ? logits : Tensor::empty(ctx, {block, V}, dtype);
  for (int64_t begin = 0; begin < N; begin += block) {
    const int64_t rows = std::min(block, N - begin);
    const Tensor x = product_rows(ctx, in.x, begin, begin + rows);
    cuda::multiply(ctx, {.transpose_b = true, .m = rows, .n = V, .k = D}, x, in.weight, logits);
    const cuda::LossRows block_rows{.logits = logits.data<float>(),
                                    .targets = in.targets.data<int64_t>() + begin,
                                    .token_loss = out.token_loss.data<float>() + begin,
                                    .prediction = out.prediction ? out.prediction.data<int64_t>() + begin : nullptr,
                                    .lse = saved.lse.data<float>() + begin,
                                    .rows = rows,
                                    .V = V};
    if (with_gradients && cuda::row_fits(block_rows)) {
      cuda::launch_row_losses(ctx, block_rows, d_logits.raw(), dtype, saved.loss_scale);
    } else {
      cuda::launch_losses(ctx, block_rows);
      if (!with_gradients) continue;
      cuda::launch_loss_gradients(ctx, block_rows, {.scale = saved.loss_scale.data<float>(), .d_logits = d_logits.raw(), .dtype = dtype});
    }
    multiply_gradients(ctx, d_logits, x, in.weight, saved.d_x.slice(0, begin, begin + rows), saved.d_weight, begin > 0);
  }
  cuda::launch_total_loss(ctx, out.token_loss, in.targets, attrs.denominator, out.loss);
  return saved;
}

void LinearCrossEntropy::backward_cuda(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in) {
  if (saved.d_x && d_out.loss && !d_out.token_loss) {
    if (d_in.x) cuda::launch_scaled(ctx, d_in.x, saved.d_x, d_out.loss, false);
    if (d_in.weight) cuda::launch_scaled(ctx, d_in.weight, saved.d_weight, d_out.loss, true);
    return;
  }
  const int64_t N = saved.x.size(0), D = saved.x.size(1), V = saved.weight.size(0), block = block_rows(attrs, N, V);
  const DType dtype = saved.x.dtype();
  const Tensor logits = Tensor::empty(ctx, {block, V}, DType::f32);
  const Tensor d_logits = dtype == DType::f32 ? logits : Tensor::empty(ctx, {block, V}, dtype);
  for (int64_t begin = 0; begin < N; begin += block) {
    const int64_t rows = std::min(block, N - begin);
    const Tensor x = product_rows(ctx, saved.x, begin, begin + rows);
    cuda::multiply(ctx, {.transpose_b = true, .m = rows, .n = V, .k = D}, x, saved.weight, logits);
    cuda::launch_loss_gradients(ctx,
                                {.logits = logits.data<float>(),
                                 .targets = saved.targets.data<int64_t>() + begin,
                                 .lse = saved.lse.data<float>() + begin,
                                 .rows = rows,
                                 .V = V},
                                {.d_loss = cuda::address_of<float>(d_out.loss),
                                 .scale = d_out.loss ? saved.loss_scale.data<float>() : nullptr,
                                 .d_token_loss = d_out.token_loss ? d_out.token_loss.data<float>() + begin : nullptr,
                                 .d_logits = d_logits.raw(),
                                 .dtype = dtype});
    multiply_gradients(ctx, d_logits, x, saved.weight, d_in.x ? d_in.x.slice(0, begin, begin + rows) : Tensor{}, d_in.weight, true);
  }
}

}  // namespace braid
