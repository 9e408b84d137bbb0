// Forward: the chunks' own contributions in parallel, a scan over chunks, then the outputs of all chunks in parallel.
#include "cuda/kernels/gated_linear_attention/cut.h"
#include "cuda/kernels/operands.h"
#include "cuda/kernels/state_step/step.h"
#include "cuda/runtime/check.h"

namespace braid {
namespace {

using namespace gla_cuda;

struct LocalParams {
  Problem problem;
  float* local;  // [slots, H, K, V]: the state after the chunk from a zero state before it
  float* decay;  // [slots, H, K]: the product of the chunk's decays
};

// A block owns a chunk, a head and a slice of V; a thread owns one key channel of it.
template <class T>
__global__ void __launch_bounds__(kMaxKeys) local_states(LocalParams params) {
  __shared__ float v[kChunk][kSlice];
  const Problem& p = params.problem;
  const Chunk chunk = chunk_of(p, blockIdx.x);
  if (chunk.count == 0) return;
  const int64_t h = blockIdx.y, column = int64_t{blockIdx.z} * kSlice, key = threadIdx.x;
  stage_slice<T>(p, p.v, chunk, h, column, v);
  __syncthreads();
  float state[kSlice] = {}, total = 1;
  for (int t = 0; t < chunk.count; t += kGroup) {
    float k[kGroup], a[kGroup];
    load_keys<T>(p, p.k, chunk, h, key, t, k);
    load_decays<T>(p, chunk, h, key, t, a);
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      total *= a[i];
#pragma unroll
      for (int c = 0; c < kSlice; ++c) state[c] = a[i] * state[c] + k[i] * v[t + i][c];
    }
  }
  store_state(p, params.local + state_row(p, chunk.slot, h, key), key, column, state);
  if (blockIdx.z == 0 && key < p.K) params.decay[(chunk.slot * p.H + h) * p.K + key] = total;
}

struct OutputParams {
  Problem problem;
  const float* states;  // [slots, H, K, V], before each chunk; null: zero
  void* o;              // [N, H, V]
  float* final_state;   // [S, H, K, V], when `single`, else null
};

template <class T>
__global__ void __launch_bounds__(kMaxKeys) outputs(OutputParams params) {
  extern __shared__ float partial[];  // [warps][kChunk][kSlice]
  __shared__ float v[kChunk][kSlice];
  const Problem& p = params.problem;
  const Chunk chunk = chunk_of(p, blockIdx.x);
  if (chunk.count == 0 && !params.final_state) return;
  const int64_t h = blockIdx.y, column = int64_t{blockIdx.z} * kSlice, key = threadIdx.x;
  stage_slice<T>(p, p.v, chunk, h, column, v);
  __syncthreads();
  float state[kSlice];
  load_state(p, params.states ? params.states + state_row(p, chunk.slot, h, key) : nullptr, key, column, state);
  for (int t = 0; t < chunk.count; t += kGroup) {
    float q[kGroup], k[kGroup], a[kGroup];
    load_keys<T>(p, p.q, chunk, h, key, t, q);
    load_keys<T>(p, p.k, chunk, h, key, t, k);
    load_decays<T>(p, chunk, h, key, t, a);
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      float term[kSlice];
#pragma unroll
      for (int c = 0; c < kSlice; ++c) {
        state[c] = a[i] * state[c] + k[i] * v[t + i][c];
        term[c] = p.scale * q[i] * state[c];
      }
      const float sum = warp_sum_of_eight(term);
      if (threadIdx.x % 4 == 0) partial[(threadIdx.x / 32 * kChunk + t + i) * kSlice + threadIdx.x % 32 / 4] = sum;
    }
  }
  if (params.final_state) store_state(p, params.final_state + state_row(p, chunk.sequence, h, key), key, column, state);
  __syncthreads();
  store_slice<T>(p, params.o, chunk, h, column, partial);
}

template <class T>
Tensor forward(Context& ctx, const Problem& p, const GatedLinearAttention::Inputs& in, GatedLinearAttention::Outputs& out) {
  const unsigned threads = key_threads(p);
  cuda::LaunchConfig config{.grid = {static_cast<unsigned>(p.slots), static_cast<unsigned>(p.H), num_slices(p)}, .block = threads};
  Tensor states = in.initial_state;
  float* initial = cuda::address_of<float>(in.initial_state);
  if (!p.single) {
    states = Tensor::empty(ctx, {p.slots, p.H, p.K, p.V}, DType::f32);
    const Tensor decay = Tensor::empty(ctx, {p.slots, p.H, p.K}, DType::f32);
    const LocalParams params{p, states.data<float>(), decay.data<float>()};
    cuda::launch(ctx.stream(), "gated_linear_attention_local_states", &local_states<T>, config, params);
    launch_scan(ctx, p, params.local, params.decay, initial, out.final_state.data<float>(), false);
  }
  config.shared_bytes = threads / 32 * kChunk * kSlice * sizeof(float);
  const OutputParams params{p, cuda::address_of<float>(states), out.o.raw(), p.single ? out.final_state.data<float>() : nullptr};
  cuda::launch(ctx.stream(), "gated_linear_attention_outputs", &outputs<T>, config, params);
  return states;
}

}  // namespace

GatedLinearAttention::Saved GatedLinearAttention::forward_cuda(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out) {
  cuda::require_kernel_dtype(name, in.q.dtype());
  if (cuda::takes_step(ctx, in.q.size(2), attrs.seqs)) {
    const double scale = attrs.scale.value_or(1 / std::sqrt(static_cast<double>(in.q.size(2))));
    cuda::step(ctx, name, {in.q, in.k, in.v, {}, in.log_decay, in.initial_state, out.o, out.final_state, scale});
    return {};
  }
  const Problem p = problem_of(ctx, in.q, in.k, in.v, in.log_decay, attrs);
  if (takes_fast_path(p, in.q, attrs)) return forward_fast(ctx, p, in, attrs, out);
  const Tensor states = in.q.dtype() == DType::f32 ? forward<float>(ctx, p, in, out) : forward<device::bf16>(ctx, p, in, out);
  return {in.q, in.k, in.v, in.log_decay, in.initial_state, states, {}, {}, {}};
}

}  // namespace braid
