// Backward: the gradients of the chunks' states as the forward's states, in reverse; then all chunks in parallel, each walked
// forwards for its states and backwards for the gradients, token by token.
#include "cuda/kernels/gated_linear_attention/cut.h"
#include "cuda/kernels/norms/column_sums.h"
#include "cuda/kernels/operands.h"
#include "cuda/runtime/check.h"

namespace braid {
namespace {

using namespace gla_cuda;

struct LocalParams {
  Problem problem;
  const void* d_o;  // [N, H, V]; null: zero
  float* local;     // [slots, H, K, V]: the gradient of the state before the chunk, from zero after it
  float* decay;     // [slots, H, K]: the product of the chunk's decays
};

// A block owns a chunk, a head and a slice of V; a thread owns one key channel of it.
template <class T>
__global__ void __launch_bounds__(kMaxKeys) local_gradients(LocalParams params) {
  __shared__ float d_o[kChunk][kSlice];
  const Problem& p = params.problem;
  const Chunk chunk = chunk_of(p, blockIdx.x);
  if (chunk.count == 0) return;
  const int64_t h = blockIdx.y, column = int64_t{blockIdx.z} * kSlice, key = threadIdx.x;
  stage_slice<T>(p, params.d_o, chunk, h, column, d_o);
  __syncthreads();
  float gradient[kSlice] = {}, total = 1;
  for (int t = (chunk.count - 1) / kGroup * kGroup; t >= 0; t -= kGroup) {
    float q[kGroup], a[kGroup];
    load_keys<T>(p, p.q, chunk, h, key, t, q);
    load_decays<T>(p, chunk, h, key, t, a);
#pragma unroll
    for (int i = kGroup - 1; i >= 0; --i) {
      total *= a[i];
#pragma unroll
      for (int c = 0; c < kSlice; ++c) gradient[c] = a[i] * (gradient[c] + p.scale * q[i] * d_o[t + i][c]);
    }
  }
  store_state(p, params.local + state_row(p, chunk.slot, h, key), key, column, gradient);
  if (blockIdx.z == 0 && key < p.K) params.decay[(chunk.slot * p.H + h) * p.K + key] = total;
}

/// A gradient [N, H, K] summed over the slices of V by the thread that owns the key channel.
struct KeyGradient {
  void* to;        // [N, H, K], dtype of q, or float when `is_float`; null: unwanted
  float* running;  // [N, H, K] sums so far; null when V is one slice
  bool is_float;
};

struct GradientParams {
  Problem problem;
  const void* d_o;         // [N, H, V]; null: zero
  const float* states;     // [slots, H, K, V], before each chunk; null: zero
  const float* gradients;  // [slots, H, K, V], of the state after each chunk; null: zero
  KeyGradient d_q, d_k;
  KeyGradient d_decay;     // per key channel, whatever the kind of decay
  void* d_v;               // [N, H, V] or null
  float* d_initial_state;  // [S, H, K, V] or null; only when `single`
};

template <class T>
__device__ inline void add_to(const KeyGradient& sum, int64_t at, float value, bool is_first, bool is_last) {
  if (!sum.to) return;
  if (!is_first) value += sum.running[at];
  if (!is_last) sum.running[at] = value;
  else if (sum.is_float) static_cast<float*>(sum.to)[at] = value;
  else static_cast<T*>(sum.to)[at] = device::from_float<T>(value);
}

// A block owns a chunk and a head and goes through the slices of V; a thread owns one key channel. Its states every kGroup tokens
// are kept in its own column of `kept`, those in between in registers.
template <class T>
__global__ void __launch_bounds__(kMaxKeys) gradients(GradientParams params) {
  extern __shared__ float shared[];  // kept [kChunk / kGroup][kSlice][threads], then partial [warps][kChunk][kSlice]
  __shared__ float v[kChunk][kSlice], d_o[kChunk][kSlice];
  const Problem& p = params.problem;
  const Chunk chunk = chunk_of(p, blockIdx.x);
  if (chunk.count == 0 && !params.d_initial_state) return;
  const int threads = blockDim.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float* const kept = shared + threadIdx.x;
  float* const partial = shared + kChunk / kGroup * kSlice * threads;
  const int64_t h = blockIdx.y, key = threadIdx.x;
  for (int64_t column = 0; column == 0 || column < p.V; column += kSlice) {
    const bool is_first = column == 0, is_last = column + kSlice >= p.V;
    __syncthreads();  // the slice before is written out
    stage_slice<T>(p, p.v, chunk, h, column, v);
    stage_slice<T>(p, params.d_o, chunk, h, column, d_o);
    __syncthreads();
    float state[kSlice], gradient[kSlice];
    load_state(p, params.states ? params.states + state_row(p, chunk.slot, h, key) : nullptr, key, column, state);
    load_state(p, params.gradients ? params.gradients + state_row(p, chunk.slot, h, key) : nullptr, key, column, gradient);
    for (int t = 0; t < chunk.count; t += kGroup) {
      float k[kGroup], a[kGroup];
      load_keys<T>(p, p.k, chunk, h, key, t, k);
      load_decays<T>(p, chunk, h, key, t, a);
#pragma unroll
      for (int c = 0; c < kSlice; ++c) kept[(t / kGroup * kSlice + c) * threads] = state[c];
#pragma unroll
      for (int i = 0; i < kGroup; ++i)
#pragma unroll
        for (int c = 0; c < kSlice; ++c) state[c] = a[i] * state[c] + k[i] * v[t + i][c];
    }
    for (int t = (chunk.count - 1) / kGroup * kGroup; t >= 0 && chunk.count > 0; t -= kGroup) {
      float q[kGroup], k[kGroup], a[kGroup], before[kGroup][kSlice];
      load_keys<T>(p, p.q, chunk, h, key, t, q);
      load_keys<T>(p, p.k, chunk, h, key, t, k);
      load_decays<T>(p, chunk, h, key, t, a);
#pragma unroll
      for (int c = 0; c < kSlice; ++c) state[c] = kept[(t / kGroup * kSlice + c) * threads];
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        float d_q = 0;
#pragma unroll
        for (int c = 0; c < kSlice; ++c) {
          before[i][c] = state[c];
          state[c] = a[i] * state[c] + k[i] * v[t + i][c];
          d_q += state[c] * d_o[t + i][c];
        }
        const int64_t at = ((chunk.first + t + i) * p.H + h) * p.K + key;
        if (t + i < chunk.count && key < p.K) add_to<T>(params.d_q, at, p.scale * d_q, is_first, is_last);
      }
#pragma unroll
      for (int i = kGroup - 1; i >= 0; --i) {
        float d_k = 0, d_decay = 0, d_v[kSlice];
#pragma unroll
        for (int c = 0; c < kSlice; ++c) {
          gradient[c] += p.scale * q[i] * d_o[t + i][c];
          d_k += gradient[c] * v[t + i][c];
          d_v[c] = gradient[c] * k[i];
          gradient[c] *= a[i];
          d_decay += gradient[c] * before[i][c];
        }
        const float sum = warp_sum_of_eight(d_v);
        if (lane % 4 == 0) partial[(warp * kChunk + t + i) * kSlice + lane / 4] = sum;
        const int64_t at = ((chunk.first + t + i) * p.H + h) * p.K + key;
        if (t + i >= chunk.count || key >= p.K) continue;
        add_to<T>(params.d_k, at, d_k, is_first, is_last);
        add_to<T>(params.d_decay, at, d_decay, is_first, is_last);
      }
    }
    if (params.d_initial_state) store_state(p, params.d_initial_state + state_row(p, chunk.sequence, h, key), key, column, gradient);
    __syncthreads();
    if (params.d_v) store_slice<T>(p, params.d_v, chunk, h, column, partial);
  }
}

struct RowSumParams {
  const float* from;  // [rows, K]
  void* to;           // [rows]
  int64_t rows, K;
};

// One warp a row.
template <class T>
__global__ void __launch_bounds__(256) row_sums(RowSumParams p) {
  const int64_t row = int64_t{blockIdx.x} * 8 + threadIdx.x / 32;
  if (row >= p.rows) return;
  float sum = 0;
  for (int64_t i = threadIdx.x % 32; i < p.K; i += 32) sum += p.from[row * p.K + i];
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
  if (threadIdx.x % 32 == 0) static_cast<T*>(p.to)[row] = device::from_float<T>(sum);
}

/// d_log_decay [N, H] or [H] from its parts [N, H, K].
void sum_decay_parts(Context& ctx, const Tensor& parts, const Tensor& d_log_decay) {
  const int64_t N = parts.size(0), H = parts.size(1), rows = N * H;
  const bool constant = d_log_decay.rank() == 1;
  const Tensor sums = constant ? Tensor::empty(ctx, {N, H}, DType::f32) : d_log_decay;
  const RowSumParams params{parts.data<float>(), sums.raw(), rows, parts.size(2)};
  const cuda::LaunchConfig config{.grid = static_cast<unsigned>((rows + 7) / 8), .block = 256};
  const auto kernel = sums.dtype() == DType::f32 ? &row_sums<float> : &row_sums<device::bf16>;
  cuda::launch(ctx.stream(), "gated_linear_attention_row_sums", kernel, config, params);
  if (constant) cuda::sum_partials(ctx, sums, d_log_decay);
}

/// The gradient of the state after each chunk; d_initial_state is written on the way.
template <class T>
Tensor state_gradients(Context& ctx, const Problem& p, const GatedLinearAttention::Outputs& d_out, const Tensor& d_initial_state) {
  const Tensor local = Tensor::empty(ctx, {p.slots, p.H, p.K, p.V}, DType::f32), decay = Tensor::empty(ctx, {p.slots, p.H, p.K}, DType::f32);
  const cuda::LaunchConfig config{.grid = {static_cast<unsigned>(p.slots), static_cast<unsigned>(p.H), num_slices(p)}, .block = key_threads(p)};
  const LocalParams params{p, cuda::address(d_out.o), local.data<float>(), decay.data<float>()};
  cuda::launch(ctx.stream(), "gated_linear_attention_local_gradients", &local_gradients<T>, config, params);
  launch_scan(ctx, p, params.local, params.decay, cuda::address_of<float>(d_out.final_state), cuda::address_of<float>(d_initial_state), true);
  return local;
}

template <class T>
void backward(Context& ctx, const Problem& p, const GatedLinearAttention::Saved& saved, const GatedLinearAttention::Outputs& d_out,
              GatedLinearAttention::Inputs& d_in) {
  const Tensor after = p.single ? d_out.final_state : state_gradients<T>(ctx, p, d_out, d_in.initial_state);
  std::array<Tensor, 4> running;  // kept until the launch
  const auto sum_into = [&](const Tensor& to, Tensor& memory) -> KeyGradient {
    if (!to) return {};
    if (num_slices(p) > 1) memory = Tensor::empty(ctx, saved.q.shape(), DType::f32);
    return {to.raw(), cuda::address_of<float>(memory), to.dtype() == DType::f32};
  };
  const bool sums_keys = d_in.log_decay && d_in.log_decay.rank() != 3;
  if (sums_keys) running[3] = Tensor::empty(ctx, saved.q.shape(), DType::f32);
  const Tensor decay_parts = sums_keys ? running[3] : d_in.log_decay;
  const GradientParams params{p,
                              cuda::address(d_out.o),
                              cuda::address_of<float>(saved.states),
                              cuda::address_of<float>(after),
                              sum_into(d_in.q, running[0]),
                              sum_into(d_in.k, running[1]),
                              sum_into(decay_parts, running[2]),
                              cuda::address(d_in.v),
                              p.single ? cuda::address_of<float>(d_in.initial_state) : nullptr};
  const unsigned threads = key_threads(p);
  const cuda::LaunchConfig config{.grid = {static_cast<unsigned>(p.slots), static_cast<unsigned>(p.H)},
                                  .block = threads,
                                  .shared_bytes = (kChunk / kGroup * threads + threads / 32 * kChunk) * kSlice * sizeof(float)};
  cuda::launch(ctx.stream(), "gated_linear_attention_gradients", &gradients<T>, config, params);
  if (sums_keys) sum_decay_parts(ctx, decay_parts, d_in.log_decay);
}

}  // namespace

void GatedLinearAttention::backward_cuda(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in) {
  const Problem p = problem_of(ctx, saved.q, saved.k, saved.v, saved.log_decay, attrs);
  if (takes_fast_path(p, saved.q, attrs)) backward_fast(ctx, p, saved, attrs, d_out, d_in);
  else if (saved.q.dtype() == DType::f32) backward<float>(ctx, p, saved, d_out, d_in);
  else backward<device::bf16>(ctx, p, saved, d_out, d_in);
}

}  // namespace braid
