// The scan over segments that joins their own contributions into states.
#include "cuda/kernels/gated_linear_attention/cut.h"
#include "cuda/runtime/check.h"

namespace braid::gla_cuda {
namespace {

constexpr int kAhead = 4;  // segments whose loads are issued together

struct JoinParams {
  Cut segments;
  int64_t H, K, V;
  float* states;         // [segments, H, K, V]
  const float* decay;    // [segments, H, K]
  const float* initial;  // [S, H, K, V] or null
  bool reverse;
};

// A thread owns four elements of one sequence's state. The contribution of the last segment is not read: nothing follows it.
__global__ void __launch_bounds__(256) join(JoinParams params) {
  const int64_t s = blockIdx.x / params.H, h = blockIdx.x % params.H, KV = params.K * params.V;
  const int64_t element = (int64_t{blockIdx.y} * blockDim.x + threadIdx.x) * 4;
  if (element >= KV) return;
  const int64_t begin = params.segments.cu_seqlens[s], length = params.segments.cu_seqlens[s + 1] - begin, cut = params.segments.length;
  const int64_t first_slot = begin / cut + s, num_segments = max(int64_t{1}, (length + cut - 1) / cut);
  float4 state = {};
  if (params.initial) state = *reinterpret_cast<const float4*>(params.initial + (s * params.H + h) * KV + element);
  for (int64_t i = 0; i < num_segments; i += kAhead) {
    float4* at[kAhead];
    float4 own[kAhead];
    float decay[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const int64_t row = (first_slot + (params.reverse ? num_segments - 1 - i - j : i + j)) * params.H + h;
      const bool follows = i + j + 1 < num_segments;
      at[j] = reinterpret_cast<float4*>(params.states + row * KV + element);
      own[j] = follows ? *at[j] : float4{};
      decay[j] = follows ? params.decay[row * params.K + element / params.V] : 0.0f;
    }
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      if (i + j < num_segments) *at[j] = state;
      state = {decay[j] * state.x + own[j].x, decay[j] * state.y + own[j].y, decay[j] * state.z + own[j].z, decay[j] * state.w + own[j].w};
    }
  }
}

}  // namespace

void launch_join(Context& ctx, const FastProblem& f, float* states, const float* decay, const float* initial, bool reverse) {
  const Problem& p = f.problem;
  const cuda::LaunchConfig config{.grid = {static_cast<unsigned>(p.S * p.H), static_cast<unsigned>((p.K * p.V + 1023) / 1024)}, .block = 256};
  cuda::launch(ctx.stream(), "gated_linear_attention_join", &join, config, JoinParams{f.segments, p.H, p.K, p.V, states, decay, initial, reverse});
}

}  // namespace braid::gla_cuda
