// The host's side of the Hopper kernels.
#pragma once
#include "cuda/kernels/attention/hopper.h"
#include "cuda/runtime/check.h"
#include "cuda/runtime/tensor_map.h"

namespace braid::attention::hopper {

inline Params params_for(const Problem& problem) {
  Params params = {.problem = problem};
  params.q = cuda::head_tensor_map(problem.q, problem.Nq, problem.H, problem.D, kBox);
  params.k = cuda::head_tensor_map(problem.k, problem.Nk, problem.HK, problem.D, kBox);
  params.v = cuda::head_tensor_map(problem.v, problem.Nk, problem.HK, problem.D, kBox);
  if (problem.d_o) params.d_o = cuda::head_tensor_map(problem.d_o, problem.Nq, problem.H, problem.D, kBox);
  return params;
}

/// Whether the kernel that will run was compiled for sm_90a: for anything else its body is empty, and needs next to no registers.
template <class KernelParams>
bool is_built(void (*kernel)(KernelParams)) {
  cudaFuncAttributes attributes = {};
  cuda::check(cudaFuncGetAttributes(&attributes, kernel), "cudaFuncGetAttributes");
  return attributes.binaryVersion == 90 && attributes.numRegs > 32;
}

}  // namespace braid::attention::hopper
