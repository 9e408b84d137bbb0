// The scan over chunks that joins their own contributions into states.
#include "cuda/kernels/gated_linear_attention/chunks.h"
#include "cuda/runtime/check.h"

namespace braid::gla_cuda {
namespace {

constexpr int kAhead = 4;  // chunks whose loads are issued together

struct ScanParams {
  Problem problem;
  float* states;         // [slots, H, K, V]: in: each chunk's contribution, out: the state before it (in scan order)
  const float* decay;    // [slots, H, K]
  const float* initial;  // [S, H, K, V] or null
  float* final_state;    // [S, H, K, V] or null
  bool reverse;
};

// A thread owns one element of one sequence's state.
__global__ void __launch_bounds__(256) scan_kernel(ScanParams params) {
  const Problem& p = params.problem;
  const int64_t s = blockIdx.x / p.H, h = blockIdx.x % p.H, KV = p.K * p.V;
  const int64_t element = int64_t{blockIdx.y} * blockDim.x + threadIdx.x;
  if (element >= KV) return;
  const int64_t key = element / p.V, begin = p.cu_seqlens[s], length = p.cu_seqlens[s + 1] - begin;
  const int64_t first_slot = begin / kChunk + s, num_chunks = (length + kChunk - 1) / kChunk;
  const int64_t own = (s * p.H + h) * KV + element;
  float state = params.initial ? params.initial[own] : 0.0f;
  for (int64_t c = 0; c < num_chunks; c += kAhead) {
    float local[kAhead], decay[kAhead];
    int64_t at[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int64_t row = (first_slot + (params.reverse ? num_chunks - 1 - c - i : c + i)) * p.H + h;
      at[i] = row * KV + element;
      const bool live = c + i < num_chunks;
      local[i] = live ? params.states[at[i]] : 0.0f;
      decay[i] = live ? params.decay[row * p.K + key] : 1.0f;
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (c + i < num_chunks) params.states[at[i]] = state;
      state = decay[i] * state + local[i];
    }
  }
  if (params.final_state) params.final_state[own] = state;
}

}  // namespace

void launch_scan(Context& ctx, const Problem& p, float* states, const float* decay, const float* initial, float* final_state, bool reverse) {
  const cuda::LaunchConfig config{.grid = {static_cast<unsigned>(p.S * p.H), static_cast<unsigned>((p.K * p.V + 255) / 256)}, .block = 256};
  cuda::launch(ctx.stream(), "gated_linear_attention_scan", &scan_kernel, config, ScanParams{p, states, decay, initial, final_state, reverse});
}

}  // namespace braid::gla_cuda
