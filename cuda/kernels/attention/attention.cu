#include <algorithm>

#include "cuda/kernels/attention/fast.h"
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
  problem.scale = static_cast<float>(attrs.scale_for(problem.D)), problem.is_bf16 = q.dtype() == DType::bf16;
  BRAID_CHECK(problem.D <= attention::kMaxHeadDim && problem.DV <= attention::kMaxHeadDim, Attention::name,
              ": on a GPU head dimensions must be at most ", attention::kMaxHeadDim, ", got D = ", problem.D, " and DV = ", problem.DV);
  return problem;
}

thread_local attention::Path last_path = attention::Path::hopper;

attention::Path path_for(const attention::Problem& problem) {
  static const bool on_hopper = attention::built_for_hopper();
  if (problem.Nq == 0 || problem.Nk == 0) return attention::Path::plain;  // nothing to describe to the copy engine
  return std::min(last_path, attention::path_for(problem, on_hopper));
}

}  // namespace

attention::PathLimit::PathLimit(Path last) : before_(last_path) { last_path = last; }
attention::PathLimit::~PathLimit() { last_path = before_; }

Attention::Saved Attention::forward_cuda(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out) {
  attention::Problem problem = problem_for(ctx, in.q, in.k, in.v, attrs);
  problem.o = out.o.raw(), problem.lse = out.lse.data<float>();
  const attention::Path path = path_for(problem);
  if (path == attention::Path::plain) attention::plain_forward(ctx, problem);
  else if (attention::decode_takes(problem, attrs.q_seqs.max_length())) attention::decode_forward(ctx, problem, attrs.keys().max_length());
  else if (path == attention::Path::hopper) attention::hopper_forward(ctx, problem);
  else attention::mma_forward(ctx, problem);
  return {in.q, in.k, in.v, out.o, out.lse};
}

void Attention::backward_cuda(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in) {
  attention::Problem problem = problem_for(ctx, saved.q, saved.k, saved.v, attrs);
  problem.o = saved.o.raw(), problem.lse = saved.lse.data<float>();
  problem.d_o = address(d_out.o);
  problem.d_q = address(d_in.q), problem.d_k = address(d_in.k), problem.d_v = address(d_in.v);
  const float* d_lse = cuda::address_of<float>(d_out.lse);
  const attention::Path path = problem.d_o ? path_for(problem) : attention::Path::plain;
  if (path != attention::Path::plain) {
    const Tensor stats = Tensor::empty(ctx, {problem.H, attention::stats_stride(problem.Nq), 2}, DType::f32);
    problem.stats = reinterpret_cast<const float2*>(stats.raw());
    attention::launch_stats(ctx, problem, d_lse, reinterpret_cast<float2*>(stats.raw()));
    if (path == attention::Path::hopper) attention::hopper_backward(ctx, problem);
    else attention::mma_backward(ctx, problem);
  } else {
    const Tensor delta = Tensor::empty(ctx, saved.lse.shape(), DType::f32);
    problem.delta = delta.data<float>();
    attention::launch_delta(ctx, problem, d_lse, delta.data<float>());
    attention::plain_backward(ctx, problem);
  }
}

}  // namespace braid
