#include <cfloat>

#include "cuda/device/overlap.h"
#include "cuda/device/reduce.h"
#include "cuda/device/scalar.h"
#include "cuda/kernels/operands.h"
#include "cuda/kernels/state_step/step.h"
#include "cuda/runtime/check.h"

namespace braid::cuda {
namespace {

constexpr int kColumns = 16, kGroups = 16, kThreads = kColumns * kGroups, kRows = 16;  // a thread has kRows rows of one column
constexpr int64_t kMaxK = int64_t{kGroups} * kRows;

/// What shares one decay.
enum class DecayOf : uint8_t { nothing, head, token_and_head, channel };

struct StepParams {
  const void *q, *k;      // [S, H, K]
  const void* v;          // [S, HV, V]
  const void* beta;       // [S, HV] or null
  const void* log_decay;  // [HV], [S, HV] or [S, HV, K], or null
  const float* initial;   // [S, HV, K, V] or null
  void* o;                // [S, HV, V]
  float* final_state;     // [S, HV, K, V]
  int64_t H, HV, K, V, slices;
  float scale;
  DecayOf decay_of;
  bool normalize, float_beta, float_decay;
};

/// A gate's value, which is like q or f32.
template <class T>
__device__ inline float gate_at(const void* gate, bool is_float, int64_t at) {
  return is_float ? static_cast<const float*>(gate)[at] : device::to_float(static_cast<const T*>(gate)[at]);
}

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
  square = device::block_sum(square, scratch);
  const bool huge = !(square <= FLT_MAX);  // squares of a smaller vector then, beside whose length eps is nothing
  const float factor = huge ? 0x1p-70f : 1.0f;
  if (huge) {
    square = 0;
    for (int64_t i = threadIdx.x; i < K; i += kThreads) square += (to[i] * factor) * (to[i] * factor);
    square = device::block_sum(square, scratch);
  }
  const float rstd = rsqrtf(square + (huge ? 0.0f : 1e-6f));
  for (int64_t i = threadIdx.x; i < K; i += kThreads) to[i] = to[i] * factor * rstd;
}

// A block has 16 columns of one state, which pass through its registers once.
template <class T>
__global__ void __launch_bounds__(kThreads) step_kernel(StepParams p) {
  __shared__ float q[kMaxK], k[kMaxK], sums[kGroups][kColumns], scratch[32];
  const int64_t slice = blockIdx.x % p.slices, j = blockIdx.x / p.slices % p.HV, s = blockIdx.x / p.slices / p.HV, head = j / (p.HV / p.H);
  const int64_t column = slice * kColumns + threadIdx.x % kColumns, group = threadIdx.x / kColumns, at = (s * p.HV + j) * p.K * p.V + column;
  const bool live = column < p.V;
  device::let_next_begin();
  float state[kRows];
#pragma unroll
  for (int i = 0; i < kRows; ++i) {  // asked for before anything is waited for
    const int64_t row = group + int64_t{i} * kGroups;
    state[i] = live && row < p.K && p.initial ? p.initial[at + row * p.V] : 0.0f;
  }
  device::wait_for_earlier_kernels();
  load_key(static_cast<const T*>(p.q) + (s * p.H + head) * p.K, p.K, p.normalize, q, scratch);
  load_key(static_cast<const T*>(p.k) + (s * p.H + head) * p.K, p.K, p.normalize, k, scratch);
  __syncthreads();
  const int64_t item = s * p.HV + j;
  const auto decay_at = [&](int64_t at) { return expf(gate_at<T>(p.log_decay, p.float_decay, at)); };
  const bool per_channel = p.decay_of == DecayOf::channel;
  const float shared_decay = p.decay_of == DecayOf::head ? decay_at(j) : p.decay_of == DecayOf::token_and_head ? decay_at(item) : 1.0f;
  float read = 0;
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int64_t row = group + int64_t{i} * kGroups;
    if (row >= p.K) continue;
    state[i] *= per_channel ? decay_at(item * p.K + row) : shared_decay;
    read += state[i] * k[row];
  }
  float u = live ? device::to_float(static_cast<const T*>(p.v)[item * p.V + column]) : 0.0f;
  if (p.beta) u = gate_at<T>(p.beta, p.float_beta, item) * (u - column_sum(read, sums));
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

bool takes_step(Context& ctx, int64_t K, const Sequences& seqs) {
  return !ctx.tape && seqs.max_length() == 1 && seqs.num_tokens() == seqs.count() && K <= kMaxK;
}

void step(Context& ctx, std::string_view op, const StateStep& step) {
  const DType dtype = step.q.dtype();
  require_kernel_dtype(op, dtype);
  const int rank = step.log_decay ? step.log_decay.rank() : 0;
  const int64_t S = step.q.size(0), V = step.v.size(2), slices = (V + kColumns - 1) / kColumns;
  const StepParams params{.q = step.q.raw(),
                          .k = step.k.raw(),
                          .v = step.v.raw(),
                          .beta = address(step.beta),
                          .log_decay = address(step.log_decay),
                          .initial = address_of<float>(step.initial),
                          .o = step.o.raw(),
                          .final_state = step.final.data<float>(),
                          .H = step.q.size(1),
                          .HV = step.v.size(1),
                          .K = step.q.size(2),
                          .V = V,
                          .slices = slices,
                          .scale = static_cast<float>(step.scale),
                          .decay_of = static_cast<DecayOf>(rank),
                          .normalize = step.qk_l2norm,
                          .float_beta = step.beta && step.beta.dtype() == DType::f32,
                          .float_decay = step.log_decay && step.log_decay.dtype() == DType::f32};
  const LaunchConfig config{.grid = static_cast<unsigned>(S * params.HV * slices), .block = kThreads, .overlaps = true};
  launch(ctx.stream(), "state_step", dtype == DType::bf16 ? &step_kernel<device::bf16> : &step_kernel<float>, config, params);
}

}  // namespace braid::cuda
