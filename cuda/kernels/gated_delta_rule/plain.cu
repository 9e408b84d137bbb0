// Token by token, one block per sequence, value head and 32 columns of the state; any K up to kMaxK and any V. A column of u needs
// the same column of the state only, so slices meet just in the gradients that sum over columns, which go through partial sums.
#include "cuda/device/reduce.h"
#include "cuda/device/scalar.h"
#include "cuda/kernels/gated_delta_rule/chunks.h"
#include "cuda/kernels/norms/column_sums.h"
#include "cuda/kernels/operands.h"
#include "cuda/kernels/state_step/step.h"
#include "cuda/runtime/check.h"
#include "ops/recurrence/gated_delta_rule.h"

namespace braid {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kColumns = 32;         // of the state, in a block: one a lane
constexpr int64_t kSpan = 64;        // tokens between two kept states
constexpr int64_t kMaxBlocks = 264;  // of the backward, each with room for the states of a span
constexpr int64_t kMaxK = 1024;

struct Problem {
  const float *q, *k;      // [N, H, K], normalised where that is asked for
  const void* v;           // [N, HV, V]
  const float* beta;       // [N, HV]
  const float* log_decay;  // [N, HV] or [N, HV, K] or null
  const float* initial;    // [S, HV, K, V] or null
  float* states;           // [spans, HV, K, V]: before each span
  void* o;                 // [N, HV, V]
  float* final_state;      // [S, HV, K, V]
  const int64_t* cu;       // [S + 1]
  int64_t S, N, H, HV, K, V, slices;
  float scale;
  bool per_channel;

  // Backward.
  const void* d_o;       // [N, HV, V] or null
  const float* d_final;  // [S, HV, K, V] or null
  void* d_v;             // [N, HV, V] or null
  float* d_initial;      // [S, HV, K, V] or null
  float *d_q, *d_k;      // [slices, N, HV, K] partial sums
  float* d_beta;         // [slices, N, HV] partial sums
  float* d_log_decay;    // [slices, N, HV] or [slices, N, HV, K] partial sums, or null
  float* scratch;        // [blocks, kSpan, K, kColumns]: the states before each token of a span
};

/// What a block works on: one slice of the state of one head of one sequence. Thread (lane, warp) owns column `lane` of the slice and
/// every kWarps-th row from `warp` on, for good: no other thread touches its elements of a state.
struct Slice {
  int64_t s, j, head, slice, column, begin, end;
  bool live;  // the column exists

  __device__ Slice(const Problem& p, int64_t item) {
    slice = item % p.slices, j = item / p.slices % p.HV, s = item / p.slices / p.HV;
    head = j / (p.HV / p.H);
    column = slice * kColumns + threadIdx.x % 32;
    live = column < p.V;
    begin = p.cu[s], end = p.cu[s + 1];
  }
  /// Where element (0, column) of a state […, HV, K, V] lies.
  __device__ int64_t at(const Problem& p, int64_t state) const { return (state * p.HV + j) * p.K * p.V + column; }
  __device__ int64_t span(int64_t token) const { return begin / kSpan + s + (token - begin) / kSpan; }
};

/// q, k and decay of a token in shared memory.
struct Vectors {
  float *q, *k, *a;  // [K]

  __device__ Vectors(const Problem& p, float* shared) : q(shared), k(shared + p.K), a(shared + 2 * p.K) {}
  __device__ void load(const Problem& p, const Slice& x, int64_t n) const {
    const int64_t from = (n * p.H + x.head) * p.K, gate = n * p.HV + x.j;
    for (int64_t i = threadIdx.x; i < p.K; i += kThreads) {
      q[i] = p.q[from + i], k[i] = p.k[from + i];
      a[i] = !p.log_decay ? 1.0f : expf(p.log_decay[p.per_channel ? gate * p.K + i : gate]);
    }
  }
};

/// The sum of x over the warps, for each column; `sums` [kWarps * 32]. Contains one barrier; another must come before the next call
/// with the same memory.
__device__ float column_sum(float x, float* sums) {
  sums[threadIdx.x] = x;
  __syncthreads();
  float total = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) total += sums[w * 32 + threadIdx.x % 32];
  return total;
}

template <class T>
__device__ float element(const void* x, int64_t at) {
  return device::to_float(static_cast<const T*>(x)[at]);
}

template <class T>
__global__ void __launch_bounds__(kThreads) forward_kernel(Problem p) {
  extern __shared__ float shared[];
  __shared__ float sums[kThreads], more_sums[kThreads];
  const Vectors token(p, shared);
  float* state = shared + 3 * p.K;  // [K, kColumns]
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const Slice x(p, blockIdx.x);
  for (int64_t i = warp; i < p.K; i += kWarps) state[i * kColumns + lane] = x.live && p.initial ? p.initial[x.at(p, x.s) + i * p.V] : 0.0f;
  for (int64_t n = x.begin; n < x.end; ++n) {
    if ((n - x.begin) % kSpan == 0 && x.live)
      for (int64_t i = warp; i < p.K; i += kWarps) p.states[x.at(p, x.span(n)) + i * p.V] = state[i * kColumns + lane];
    __syncthreads();  // the last token's vectors and sums are read
    token.load(p, x, n);
    __syncthreads();
    float seen = 0;
    for (int64_t i = warp; i < p.K; i += kWarps) {
      const float decayed = token.a[i] * state[i * kColumns + lane];
      state[i * kColumns + lane] = decayed;
      seen += decayed * token.k[i];
    }
    seen = column_sum(seen, sums);
    const int64_t row = n * p.HV + x.j;
    const float v = x.live ? element<T>(p.v, row * p.V + x.column) : 0.0f, u = p.beta[row] * (v - seen);
    float o = 0;
    for (int64_t i = warp; i < p.K; i += kWarps) {
      const float next = state[i * kColumns + lane] + token.k[i] * u;
      state[i * kColumns + lane] = next;
      o += next * token.q[i];
    }
    o = column_sum(o, more_sums);
    if (warp == 0 && x.live) static_cast<T*>(p.o)[row * p.V + x.column] = device::from_float<T>(p.scale * o);
  }
  if (!x.live) return;
  for (int64_t i = warp; i < p.K; i += kWarps) p.final_state[x.at(p, x.s) + i * p.V] = state[i * kColumns + lane];
}

/// The states before each token of the span [first, last), from the one kept before it.
template <class T>
__device__ void recompute(const Problem& p, const Slice& x, const Vectors& token, float* sums, float* kept, int64_t first, int64_t last) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int64_t i = warp; i < p.K; i += kWarps) kept[i * kColumns + lane] = x.live ? p.states[x.at(p, x.span(first)) + i * p.V] : 0.0f;
  for (int64_t n = first; n + 1 < last; ++n) {
    const float* before = kept + (n - first) * p.K * kColumns;
    float* after = kept + (n + 1 - first) * p.K * kColumns;
    __syncthreads();  // the last token's vectors and sums are read
    token.load(p, x, n);
    __syncthreads();
    float seen = 0;
    for (int64_t i = warp; i < p.K; i += kWarps) seen += token.a[i] * before[i * kColumns + lane] * token.k[i];
    seen = column_sum(seen, sums);
    const int64_t row = n * p.HV + x.j;
    const float v = x.live ? element<T>(p.v, row * p.V + x.column) : 0.0f, u = p.beta[row] * (v - seen);
    for (int64_t i = warp; i < p.K; i += kWarps) after[i * kColumns + lane] = token.a[i] * before[i * kColumns + lane] + token.k[i] * u;
  }
}

/// One token backwards; d_state is the gradient of the state after it, then of the state before it.
template <class T>
__device__ void step_back(const Problem& p, const Slice& x, const Vectors& token, float* sums, float* more_sums, float* d_state, const float* before,
                          int64_t n) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t row = n * p.HV + x.j;
  __syncthreads();  // the last token's vectors and sums are read
  token.load(p, x, n);
  __syncthreads();
  const float d_o = x.live && p.d_o ? p.scale * element<T>(p.d_o, row * p.V + x.column) : 0.0f;
  float seen = 0, d_u = 0;
  for (int64_t i = warp; i < p.K; i += kWarps) {
    const float d = d_state[i * kColumns + lane] + token.q[i] * d_o;
    d_state[i * kColumns + lane] = d;
    seen += token.a[i] * before[i * kColumns + lane] * token.k[i];
    d_u += d * token.k[i];
  }
  seen = column_sum(seen, sums);
  d_u = column_sum(d_u, more_sums);
  const float v = x.live ? element<T>(p.v, row * p.V + x.column) : 0.0f;
  const float beta = p.beta[row], e = v - seen, u = beta * e, d_v = beta * d_u;
  const int64_t partial = x.slice * p.N * p.HV + row;
  if (warp == 0) {
    if (p.d_v && x.live) static_cast<T*>(p.d_v)[row * p.V + x.column] = device::from_float<T>(d_v);
    const float d_beta = device::warp_sum(d_u * e);
    if (lane == 0) p.d_beta[partial] = d_beta;
  }
  float d_log = 0;
  for (int64_t i = warp; i < p.K; i += kWarps) {
    const float decayed = token.a[i] * before[i * kColumns + lane], d = d_state[i * kColumns + lane];
    const float d_decayed = d - token.k[i] * d_v;
    const float d_q = device::warp_sum((decayed + token.k[i] * u) * d_o), d_k = device::warp_sum(d * u - decayed * d_v);
    if (lane == 0) p.d_q[partial * p.K + i] = d_q, p.d_k[partial * p.K + i] = d_k;
    if (p.d_log_decay && p.per_channel) {
      const float d_channel = device::warp_sum(decayed * d_decayed);
      if (lane == 0) p.d_log_decay[partial * p.K + i] = d_channel;
    }
    d_log += decayed * d_decayed;
    d_state[i * kColumns + lane] = token.a[i] * d_decayed;
  }
  if (p.d_log_decay && !p.per_channel) {
    __syncthreads();  // the sums are read
    d_log = device::warp_sum(column_sum(d_log, sums));
    if (threadIdx.x == 0) p.d_log_decay[partial] = d_log;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) backward_kernel(Problem p) {
  extern __shared__ float shared[];
  __shared__ float sums[kThreads], more_sums[kThreads];
  const Vectors token(p, shared);
  float* d_state = shared + 3 * p.K;  // [K, kColumns]
  float* kept = p.scratch + blockIdx.x * kSpan * p.K * kColumns;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int64_t item = blockIdx.x; item < p.S * p.HV * p.slices; item += gridDim.x) {
    const Slice x(p, item);
    for (int64_t i = warp; i < p.K; i += kWarps) d_state[i * kColumns + lane] = x.live && p.d_final ? p.d_final[x.at(p, x.s) + i * p.V] : 0.0f;
    for (int64_t spans = (x.end - x.begin + kSpan - 1) / kSpan; spans > 0; --spans) {
      const int64_t first = x.begin + (spans - 1) * kSpan, last = min(x.end, first + kSpan);
      recompute<T>(p, x, token, sums, kept, first, last);
      for (int64_t n = last - 1; n >= first; --n) step_back<T>(p, x, token, sums, more_sums, d_state, kept + (n - first) * p.K * kColumns, n);
    }
    if (!p.d_initial || !x.live) continue;
    for (int64_t i = warp; i < p.K; i += kWarps) p.d_initial[x.at(p, x.s) + i * p.V] = d_state[i * kColumns + lane];
  }
}

struct NormParams {
  const void* x;    // [rows, K]
  float *y, *rstd;  // [rows, K], [rows]
  int64_t rows, K;
  bool normalize;
};

// A warp a row: to float, and over its norm where asked; squares are of x / max(1, |x|_max), which cannot overflow.
template <class T>
__global__ void __launch_bounds__(kThreads) prepare_kernel(NormParams p) {
  const int lane = threadIdx.x % 32;
  const int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (row >= p.rows) return;
  float largest = 1, sum = 0;
  for (int64_t i = lane; i < p.K; i += 32) largest = fmaxf(largest, fabsf(element<T>(p.x, row * p.K + i)));
  largest = device::warp_max(largest);
  for (int64_t i = lane; i < p.K; i += 32) {
    const float part = element<T>(p.x, row * p.K + i) / largest;
    sum += part * part;
  }
  const float norm = sqrtf(device::warp_sum(sum) + 1e-6f / largest / largest);
  for (int64_t i = lane; i < p.K; i += 32) {
    const float value = element<T>(p.x, row * p.K + i);
    p.y[row * p.K + i] = p.normalize ? value / largest / norm : value;
  }
  if (lane == 0) p.rstd[row] = p.normalize ? 1 / norm / largest : 1.0f;
}

struct GatherParams {
  const float* partials;  // [slices, N, HV, K]
  const float *y, *rstd;  // [N, H, K], [N, H]
  void* d_x;              // [N, H, K]
  int64_t rows, K, group, slices;
  bool normalize;
};

// d_x of a row: the sum over its value heads and slices, in order, then through the norm. A warp a row.
template <class T>
__global__ void __launch_bounds__(kThreads) gather_kernel(GatherParams p) {
  const int lane = threadIdx.x % 32;
  const int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (row >= p.rows) return;
  const auto total = [&](int64_t i) {
    float sum = 0;
    for (int64_t g = 0; g < p.group; ++g)
      for (int64_t slice = 0; slice < p.slices; ++slice) sum += p.partials[((slice * p.rows + row) * p.group + g) * p.K + i];
    return sum;
  };
  float dot = 0;
  if (p.normalize)
    for (int64_t i = lane; i < p.K; i += 32) dot += total(i) * p.y[row * p.K + i];
  dot = device::warp_sum(dot);
  for (int64_t i = lane; i < p.K; i += 32)
    static_cast<T*>(p.d_x)[row * p.K + i] = device::from_float<T>(p.rstd[row] * (total(i) - dot * p.y[row * p.K + i]));
}

template <class Params>
void launch_for(Context& ctx, DType dtype, std::string_view name, void (*wide)(Params), void (*narrow)(Params), int64_t blocks, int64_t shared_bytes,
                const Params& params) {
  const cuda::LaunchConfig config{.grid = static_cast<unsigned>(blocks), .block = kThreads, .shared_bytes = static_cast<size_t>(shared_bytes)};
  cuda::launch(ctx.stream(), name, dtype == DType::bf16 ? narrow : wide, config, params);
}

int64_t row_blocks(int64_t rows) { return (rows + kWarps - 1) / kWarps; }
int64_t shared_bytes(int64_t K) { return K * (3 + kColumns) * static_cast<int64_t>(sizeof(float)); }

Problem make_problem(Context& ctx, const GatedDeltaRule::Saved& x, const GatedDeltaRule::Attrs& attrs) {
  Problem p = {};
  p.S = attrs.seqs.count(), p.N = x.q.size(0), p.H = x.q.size(1), p.K = x.q.size(2), p.HV = x.v.size(1), p.V = x.v.size(2);
  p.slices = (p.V + kColumns - 1) / kColumns;
  p.q = x.q.data<float>(), p.k = x.k.data<float>(), p.v = x.v.raw(), p.beta = x.beta.data<float>();
  p.log_decay = cuda::address_of<float>(x.log_decay), p.initial = cuda::address_of<float>(x.initial_state);
  p.states = x.states.data<float>(), p.cu = attrs.seqs.on_device(ctx).data<int64_t>();
  p.scale = static_cast<float>(attrs.scale.value_or(1 / std::sqrt(static_cast<double>(p.K))));
  p.per_channel = x.log_decay.defined() && x.log_decay.rank() == 3;
  return p;
}

Tensor in_float(Context& ctx, const Tensor& x) { return !x.defined() || x.dtype() == DType::f32 ? x : converted(ctx, x, DType::f32); }

}  // namespace

GatedDeltaRule::Saved GatedDeltaRule::forward_cuda(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out) {
  const double scale = attrs.scale.value_or(1 / std::sqrt(static_cast<double>(in.q.size(2))));
  if (cuda::takes_step(ctx, in.q.size(2), attrs.seqs)) {
    cuda::step(ctx, name, {in.q, in.k, in.v, in.beta, in.log_decay, in.initial_state, out.o, out.final_state, scale, attrs.qk_l2norm});
    return {};
  }
  if (delta_cuda::takes(ctx, in, attrs)) return delta_cuda::forward(ctx, in, attrs, out);
  const DType dtype = in.q.dtype();
  cuda::require_kernel_dtype(name, dtype);
  const int64_t N = in.q.size(0), H = in.q.size(1), K = in.q.size(2), HV = in.v.size(1), V = in.v.size(2), S = attrs.seqs.count();
  BRAID_CHECK(K <= kMaxK, name, ": on a GPU q must have at most ", kMaxK, " channels, got K = ", K);
  Saved saved;
  saved.q = Tensor::empty(ctx, in.q.shape(), DType::f32), saved.k = Tensor::empty(ctx, in.k.shape(), DType::f32);
  saved.q_rstd = Tensor::empty(ctx, {N, H}, DType::f32), saved.k_rstd = Tensor::empty(ctx, {N, H}, DType::f32);
  saved.v = in.v, saved.beta = in_float(ctx, in.beta), saved.log_decay = in_float(ctx, in.log_decay), saved.initial_state = in.initial_state;
  saved.states = Tensor::empty(ctx, {N / kSpan + S, HV, K, V}, DType::f32);
  const NormParams q_params{in.q.raw(), saved.q.data<float>(), saved.q_rstd.data<float>(), N * H, K, attrs.qk_l2norm};
  const NormParams k_params{in.k.raw(), saved.k.data<float>(), saved.k_rstd.data<float>(), N * H, K, attrs.qk_l2norm};
  for (const NormParams& params : {q_params, k_params})
    launch_for(ctx, dtype, "gated_delta_rule_prepare", &prepare_kernel<float>, &prepare_kernel<device::bf16>, row_blocks(N * H), 0, params);
  Problem p = make_problem(ctx, saved, attrs);
  p.o = out.o.raw(), p.final_state = out.final_state.data<float>();
  launch_for(ctx, dtype, "gated_delta_rule_forward", &forward_kernel<float>, &forward_kernel<device::bf16>, S * HV * p.slices, shared_bytes(K), p);
  return saved;
}

void GatedDeltaRule::backward_cuda(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in) {
  if (saved.inverse) return delta_cuda::backward(ctx, saved, attrs, d_out, d_in);
  const DType dtype = saved.v.dtype();
  Problem p = make_problem(ctx, saved, attrs);
  const int64_t items = p.S * p.HV * p.slices, blocks = items < kMaxBlocks ? items : kMaxBlocks;
  const auto floats = [&](const Shape& shape) { return Tensor::empty(ctx, shape, DType::f32); };
  const Tensor d_q = floats({p.slices, p.N, p.HV, p.K}), d_k = floats({p.slices, p.N, p.HV, p.K});
  const Tensor d_beta = floats({p.slices, p.N * p.HV}), scratch = floats({blocks, kSpan, p.K, kColumns});
  const Tensor d_log_decay = d_in.log_decay ? floats({p.slices, d_in.log_decay.numel()}) : Tensor{};
  p.d_o = cuda::address(d_out.o), p.d_final = cuda::address_of<float>(d_out.final_state);
  p.d_v = cuda::address(d_in.v), p.d_initial = cuda::address_of<float>(d_in.initial_state);
  p.d_q = d_q.data<float>(), p.d_k = d_k.data<float>(), p.d_beta = d_beta.data<float>(), p.scratch = scratch.data<float>();
  p.d_log_decay = cuda::address_of<float>(d_log_decay);
  launch_for(ctx, dtype, "gated_delta_rule_backward", &backward_kernel<float>, &backward_kernel<device::bf16>, blocks, shared_bytes(p.K), p);
  const auto gather = [&](const Tensor& partials, const Tensor& y, const Tensor& rstd, const Tensor& d_x) {
    if (!d_x) return;
    const GatherParams params{partials.data<float>(), y.data<float>(), rstd.data<float>(), d_x.raw(), p.N * p.H, p.K, p.HV / p.H, p.slices,
                              attrs.qk_l2norm};
    launch_for(ctx, dtype, "gated_delta_rule_gather", &gather_kernel<float>, &gather_kernel<device::bf16>, row_blocks(p.N * p.H), 0, params);
  };
  gather(d_q, saved.q, saved.q_rstd, d_in.q);
  gather(d_k, saved.k, saved.k_rstd, d_in.k);
  if (d_in.beta) cuda::sum_partials(ctx, d_beta, d_in.beta);
  if (d_in.log_decay) cuda::sum_partials(ctx, d_log_decay, d_in.log_decay);
}

}  // namespace braid
