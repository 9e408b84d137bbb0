// One token of a sequence, where nothing is kept for backward: the state passes through registers once.
#include <cmath>

#include "cuda/device/reduce.h"
#include "cuda/device/scalar.h"
#include "cuda/kernels/gated_delta_rule/step.h"
#include "cuda/kernels/operands.h"
#include "cuda/runtime/check.h"

namespace braid::delta_cuda {
namespace {

constexpr int kColumns = 16, kGroups = 16, kThreads = kColumns * kGroups, kRows = 16;  // a thread has kRows rows of one column
constexpr int64_t kMaxK = int64_t{kGroups} * kRows;

struct StepParams {
  const void *q, *k;       // [S, H, K]
  const void* v;           // [S, HV, V]
  const void* beta;        // [S, HV]
  const float* log_decay;  // [S, HV] or [S, HV, K] or null
  const float* initial;    // [S, HV, K, V] or null
  void* o;                 // [S, HV, V]
  float* final_state;      // [S, HV, K, V]
  int64_t H, HV, K, V, slices;
  float scale;
  bool per_channel, normalize, float_beta;
};

/// The sum over the groups of each column, given to every thread of the column.
__device__ inline float column_sum(float x, float (&sums)[kGroups][kColumns]) {
  const int column = threadIdx.x % kColumns, group = threadIdx.x / kColumns;
  __syncthreads();
  sums[group][column] = x;
  __syncthreads();
  float sum = 0;
#pragma unroll
  for (int g = 0; g < kGroups; ++g) sum += sums[g][column];
  return sum;
}

/// x [K] in float, divided by its length (as in norms.cu: eps 1e-6) where that is asked for.
template <class T>
__device__ inline void load_key(const T* from, int64_t K, bool normalize, float* to, float* scratch) {
  float square = 0;
  for (int64_t i = threadIdx.x; i < K; i += kThreads) {
    to[i] = device::to_float(from[i]);
    square += to[i] * to[i];
  }
  if (!normalize) return;
  const float rstd = rsqrtf(device::block_sum(square, scratch) + 1e-6f);
  for (int64_t i = threadIdx.x; i < K; i += kThreads) to[i] *= rstd;
}

// S' = a S,  u = beta (v − S'ᵀ k),  S'' = S' + k uᵀ,  o = scale · S''ᵀ q
template <class T>
__global__ void __launch_bounds__(kThreads) step_kernel(StepParams p) {
  __shared__ float q[kMaxK], k[kMaxK], sums[kGroups][kColumns], scratch[32];
  const int64_t slice = blockIdx.x % p.slices, j = blockIdx.x / p.slices % p.HV, s = blockIdx.x / p.slices / p.HV, head = j / (p.HV / p.H);
  const int64_t column = slice * kColumns + threadIdx.x % kColumns, group = threadIdx.x / kColumns, at = (s * p.HV + j) * p.K * p.V + column;
  const bool live = column < p.V;
  float state[kRows];
#pragma unroll
  for (int i = 0; i < kRows; ++i) {  // asked for before anything is waited for
    const int64_t row = group + int64_t{i} * kGroups;
    state[i] = live && row < p.K && p.initial ? p.initial[at + row * p.V] : 0.0f;
  }
  load_key(static_cast<const T*>(p.q) + (s * p.H + head) * p.K, p.K, p.normalize, q, scratch);
  load_key(static_cast<const T*>(p.k) + (s * p.H + head) * p.K, p.K, p.normalize, k, scratch);
  __syncthreads();
  const int64_t item = s * p.HV + j;
  const float decay = p.log_decay && !p.per_channel ? expf(p.log_decay[item]) : 1.0f;
  const float beta = p.float_beta ? static_cast<const float*>(p.beta)[item] : device::to_float(static_cast<const T*>(p.beta)[item]);
  float read = 0;
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int64_t row = group + int64_t{i} * kGroups;
    if (row >= p.K) continue;
    state[i] *= p.per_channel ? expf(p.log_decay[item * p.K + row]) : decay;
    read += state[i] * k[row];
  }
  const float v = live ? device::to_float(static_cast<const T*>(p.v)[item * p.V + column]) : 0.0f;
  const float u = beta * (v - column_sum(read, sums));
  float o = 0;
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int64_t row = group + int64_t{i} * kGroups;
    if (row >= p.K) continue;
    state[i] += k[row] * u;
    o += state[i] * q[row];
    if (live) p.final_state[at + row * p.V] = state[i];
  }
  o = column_sum(o, sums);
  if (live && group == 0) static_cast<T*>(p.o)[item * p.V + column] = device::from_float<T>(p.scale * o);
}

}  // namespace

bool takes_step(Context& ctx, const GatedDeltaRule::Inputs& in, const GatedDeltaRule::Attrs& attrs) {
  const Sequences& seqs = attrs.seqs;
  return !ctx.tape && seqs.max_length() == 1 && seqs.num_tokens() == seqs.count() && in.q.size(2) <= kMaxK &&
         (!in.log_decay || in.log_decay.dtype() == DType::f32);
}

void step(Context& ctx, const GatedDeltaRule::Inputs& in, const GatedDeltaRule::Attrs& attrs, const GatedDeltaRule::Outputs& out) {
  const DType dtype = in.q.dtype();
  cuda::require_kernel_dtype(GatedDeltaRule::name, dtype);
  StepParams p = {};
  p.q = in.q.raw(), p.k = in.k.raw(), p.v = in.v.raw(), p.beta = in.beta.raw(), p.log_decay = cuda::address_of<float>(in.log_decay);
  p.initial = cuda::address_of<float>(in.initial_state), p.o = out.o.raw(), p.final_state = out.final_state.data<float>();
  p.H = in.q.size(1), p.K = in.q.size(2), p.HV = in.v.size(1), p.V = in.v.size(2), p.slices = (p.V + kColumns - 1) / kColumns;
  p.scale = static_cast<float>(attrs.scale.value_or(1 / std::sqrt(static_cast<double>(p.K))));
  p.per_channel = in.log_decay.defined() && in.log_decay.rank() == 3;
  p.normalize = attrs.qk_l2norm, p.float_beta = in.beta.dtype() == DType::f32;
  const cuda::LaunchConfig config{.grid = static_cast<unsigned>(attrs.seqs.count() * p.HV * p.slices), .block = kThreads};
  cuda::launch(ctx.stream(), "gated_delta_rule_step", dtype == DType::bf16 ? &step_kernel<device::bf16> : &step_kernel<float>, config, p);
}

}  // namespace braid::delta_cuda
