// The host's side of the Hopper kernels.
#pragma once
#include <algorithm>

#include "core/context.h"
#include "cuda/kernels/attention/hopper.h"
#include "cuda/runtime/check.h"
#include "cuda/runtime/runtime.h"
#include "cuda/runtime/tensor_map.h"

namespace braid::attention::hopper {

inline Params params_for(const Problem& problem) {
  Params params = {.problem = problem};
  const int box = box_of(problem.D);
  params.q = cuda::head_tensor_map(problem.q, problem.Nq, problem.H, problem.D, box);
  params.k = cuda::head_tensor_map(problem.k, problem.Nk, problem.HK, problem.D, box);
  params.v = cuda::head_tensor_map(problem.v, problem.Nk, problem.HK, problem.D, box);
  if (problem.d_o) params.d_o = cuda::head_tensor_map(problem.d_o, problem.Nq, problem.H, problem.D, box);
  if (problem.stats) params.stats = cuda::row_tensor_map(problem.stats, problem.H, problem.Nq, stats_stride(problem.Nq), pairs_of(problem.D));
  return params;
}

/// Starts as many blocks as the device runs at once; they share the items out.
template <class P>
void launch_items(Context& ctx, std::string_view name, void (*kernel)(Params), const Problem& problem, int64_t items) {
  if (items == 0) return;
  const Tensor taken = Tensor::zeros(ctx, {1}, DType::i32);
  Params params = params_for(problem);
  params.items = items, params.taken = reinterpret_cast<unsigned*>(taken.raw());
  const int64_t at_once = cuda::facts(ctx.device().index).num_multiprocessors;
  const cuda::LaunchConfig config = {
      .grid = static_cast<unsigned>(std::min(items, at_once)), .block = P::Crew::kThreads, .shared_bytes = P::kSharedBytes};
  cuda::launch(ctx.stream(), name, kernel, config, params);
}

/// Whether the kernel that will run was compiled for sm_90a: for anything else its body is empty, and needs next to no registers.
template <class KernelParams>
bool is_built(void (*kernel)(KernelParams)) {
  cudaFuncAttributes attributes = {};
  cuda::check(cudaFuncGetAttributes(&attributes, kernel), "cudaFuncGetAttributes");
  return attributes.binaryVersion == 90 && attributes.numRegs > 32;
}

}  // namespace braid::attention::hopper
