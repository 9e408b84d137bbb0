#include "cuda/kernels/attention/plain.h"
#include "cuda/kernels/operands.h"
#include "ops/attention.h"

namespace braid {
namespace {

using cuda::address;

attention::Problem problem_for(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v, const Attention::Attrs& attrs) {
  cuda::require_kernel_dtype(Attention::name, q.dtype());
  attention::Problem problem = {};
  problem.q = q.raw(), problem.k = k.raw(), problem.v = v.raw();
  problem.cu_q = attrs.q_seqs.on_device(ctx).data<int64_t>(), problem.cu_k = attrs.keys().on_device(ctx).data<int64_t>();
  problem.S = attrs.q_seqs.count(), problem.Nq = q.size(0), problem.Nk = k.size(0);
  problem.H = q.size(1), problem.HK = k.size(1), problem.D = q.size(2), problem.DV = v.size(2);
  problem.window = attrs.window < attrs.keys().max_length() ? attrs.window : 0;
  problem.scale = static_cast<float>(attrs.scale_for(problem.D));
  BRAID_CHECK(problem.D <= attention::kMaxHeadDim && problem.DV <= attention::kMaxHeadDim, Attention::name,
              ": on a GPU head dimensions must be at most ", attention::kMaxHeadDim, ", got D = ", problem.D, " and DV = ", problem.DV);
  return problem;
}

}  // namespace

Attention::Saved Attention::forward_cuda(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out) {
  attention::Problem problem = problem_for(ctx, in.q, in.k, in.v, attrs);
  problem.o = out.o.raw(), problem.lse = out.lse.data<float>();
  attention::plain_forward(ctx, in.q.dtype(), problem);
  return {in.q, in.k, in.v, out.o, out.lse};
}

void Attention::backward_cuda(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in) {
  attention::Problem problem = problem_for(ctx, saved.q, saved.k, saved.v, attrs);
  const Tensor delta = Tensor::empty(ctx, saved.lse.shape(), DType::f32);
  problem.o = saved.o.raw(), problem.lse = saved.lse.data<float>();
  problem.d_o = address(d_out.o), problem.delta = delta.data<float>();
  problem.d_q = address(d_in.q), problem.d_k = address(d_in.k), problem.d_v = address(d_in.v);
  attention::launch_delta(ctx, saved.q.dtype(), problem, cuda::address_of<float>(d_out.lse), delta.data<float>());
  attention::plain_backward(ctx, saved.q.dtype(), problem);
}

}  // namespace braid
