#include "cuda/kernels/norms/column_sums.h"
#include "cuda/kernels/sequences/empty_sequences.h"
#include "cuda/kernels/short_conv/plan.h"

namespace braid {
namespace {

struct BackwardParams {
  device::ConvInputs in;
  const void* d_o;             // [N, D] or null
  const float* d_final_state;  // [S, D, W−1] or null
  void* d_x;                   // [N, D] or null
  float* d_initial_state;      // [S, D, W−1] or null
  float* d_weight;             // [tiles, D, W], a partial sum each, or null
};

/// Where gradients of inputs of one sequence go, by number `local` of the input: below 0 are those of the initial state.
template <class T, int width>
struct InputGradients {
  const BackwardParams& p;
  int64_t d, tile_begin, tile_end;

  __device__ void store(const device::SequenceWalk& sequence, int64_t local, const float (&sum)[width]) const {
    const int64_t tail = p.in.W - 1, token = sequence.begin + local, row = (sequence.idx * p.in.D + d) * tail;
    if (local < -tail) return;
    // An input belongs to the tile of its token, an initial one to the tile of its sequence's first token.
    if (local < 0 ? !p.d_initial_state || sequence.begin < tile_begin : !p.d_x || token < tile_begin || token >= tile_end) return;
    const int64_t kept = local - (sequence.end - sequence.begin) + tail;  // where the final state has this input
    float value[width];
#pragma unroll
    for (int c = 0; c < width; ++c) value[c] = sum[c] + (p.d_final_state && kept >= 0 ? p.d_final_state[row + c * tail + kept] : 0.0f);
    if (local >= 0) {
      device::store(static_cast<T*>(p.d_x) + token * p.in.D + d, value);
      return;
    }
#pragma unroll
    for (int c = 0; c < width; ++c) p.d_initial_state[row + c * tail + local + tail] = value[c];
  }
};

// Tokens t of a tile, and those after it that its inputs reach: d_z_t = d_o_t act'(z_t) adds weight_j d_z_t to the gradient of input
// t − taps + 1 + j, which is complete once j = 0 was added. d_weight_j = Σ_t d_z_t x_{t−taps+1+j}.
template <class T, int taps, int width>
__global__ void __launch_bounds__(cuda::kConvThreads) short_conv_backward(BackwardParams p) {
  constexpr int kAhead = taps > 4 ? 1 : cuda::kConvAhead;
  const device::ConvInputs& in = p.in;
  const int64_t d = (int64_t{blockIdx.y} * cuda::kConvThreads + threadIdx.x) * width;
  if (d >= in.D) return;
  const int64_t begin = int64_t{blockIdx.x} * cuda::kConvTokens, end = min(in.N, begin + cuda::kConvTokens);
  const int64_t limit = min(end + taps - 1, device::SequenceWalk(in.cu_seqlens, in.S, end - 1).end);
  const InputGradients<T, width> to{p, d, begin, end};
  device::SequenceWalk sequence(in.cu_seqlens, in.S, begin);
  device::ConvWindow<T, taps, width> window;
  window.load_weight(in, d);
  float sums[taps][width] = {}, d_weight[taps][width] = {};  // sums_j: of input t − taps + 1 + j
  for (int64_t first = begin; first < limit; first += kAhead) {
    float ahead[kAhead][width], d_ahead[kAhead][width] = {};
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (first + i >= limit) continue;
      device::load(static_cast<const T*>(in.x) + (first + i) * in.D + d, ahead[i]);
      if (p.d_o) device::load(static_cast<const T*>(p.d_o) + (first + i) * in.D + d, d_ahead[i]);
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int64_t t = first + i;
      if (t >= limit) break;
      if (t == sequence.end) sequence.advance();
      if (t == begin || t == sequence.begin) {
        window.fill(in, sequence, t, d);
#pragma unroll
        for (int j = 0; j < taps; ++j)
#pragma unroll
          for (int c = 0; c < width; ++c) sums[j][c] = 0;
      }
      float z[width];
      window.convolve(ahead[i], z);
#pragma unroll
      for (int c = 0; c < width; ++c) {
        const float s = 1.0f / (1.0f + expf(-z[c]));
        const float d_z = in.silu ? d_ahead[i][c] * s * (1.0f + z[c] * (1.0f - s)) : d_ahead[i][c];
#pragma unroll
        for (int j = 0; j < taps; ++j) {
          sums[j][c] += window.weight[j][c] * d_z;
          if (t < end) d_weight[j][c] += window.x[j][c] * d_z;
        }
      }
      const int64_t local = t - sequence.begin;
      to.store(sequence, local - (taps - 1), sums[0]);
      device::shift(window.x);
      device::shift(sums);
      if (t + 1 != sequence.end) continue;
#pragma unroll
      for (int j = 0; j < taps - 1; ++j) to.store(sequence, local - (taps - 2) + j, sums[j]);
    }
  }
  if (!p.d_weight) return;
#pragma unroll
  for (int j = 0; j < taps; ++j) {
    const int tap = j - (taps - in.W);
#pragma unroll
    for (int c = 0; c < width; ++c)
      if (tap >= 0) p.d_weight[(blockIdx.x * in.D + d + c) * in.W + tap] = d_weight[j][c];
  }
}

using cuda::address_of;
using cuda::aligned16;

}  // namespace

void ShortConv::backward_cuda(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in) {
  const int64_t N = saved.x.size(0), D = saved.x.size(1), W = saved.weight.size(1), tiles = cuda::num_conv_tiles(N);
  cuda::pass_empty_sequences(ctx, attrs.seqs, d_out.final_state, d_in.initial_state);
  const Tensor partials = d_in.weight ? Tensor::empty(ctx, {tiles, D * W}, DType::f32) : Tensor{};
  const BackwardParams params{cuda::conv_inputs(ctx, saved.x, saved.weight, saved.initial_state, attrs),
                              cuda::address(d_out.o),
                              address_of<float>(d_out.final_state),
                              cuda::address(d_in.x),
                              address_of<float>(d_in.initial_state),
                              address_of<float>(partials)};
  const bool aligned = aligned16(saved.x) && aligned16(d_out.o) && aligned16(d_in.x);
  cuda::dispatch_conv(saved.x.dtype(), params.in.W, D, aligned, [&]<class T, int taps, int width>() {
    cuda::launch(ctx.stream(), "short_conv_backward", &short_conv_backward<T, taps, width>, cuda::conv_config(N, D, width), params);
  });
  if (d_in.weight) cuda::sum_partials(ctx, partials, d_in.weight);
}

}  // namespace braid
