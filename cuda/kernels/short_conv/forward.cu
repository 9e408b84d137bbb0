#include "cuda/device/math.h"
#include "cuda/device/overlap.h"
#include "cuda/kernels/sequences/empty_sequences.h"
#include "cuda/kernels/short_conv/plan.h"
#include "ops/l2_norm.h"

namespace braid {
namespace {

struct ForwardParams {
  device::ConvInputs in;
  void* o;             // [N, D]
  float* final_state;  // [S, D, W−1]
};

/// o from z.
template <bool heads, int width>
__device__ inline void activate(const device::ConvInputs& in, float (&z)[width]) {
  if (in.silu) {
#pragma unroll
    for (int c = 0; c < width; ++c) z[c] *= device::fast_sigmoid(z[c]);
  }
  if constexpr (heads) device::normalize_head(z, in.head_lanes, static_cast<float>(kConvNormEps));
}

/// A whole tile inside one sequence: nothing is asked of a token but its values.
template <bool heads, class T, int taps, int width>
__device__ inline void convolve_inside(const ForwardParams& p, device::ConvWindow<T, taps, width>& window, int64_t begin, int64_t end, int64_t d) {
  constexpr int kAhead = cuda::kConvInsideAhead;
  static_assert(cuda::kConvTokens % kAhead == 0);
  const T* x = static_cast<const T*>(p.in.x) + begin * p.in.D + d;
  T* o = static_cast<T*>(p.o) + begin * p.in.D + d;
  for (int64_t first = begin; first < end; first += kAhead) {
    device::Pack<T, width> ahead[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) ahead[i] = *reinterpret_cast<const device::Pack<T, width>*>(x + i * p.in.D);
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      float newest[width], z[width];
#pragma unroll
      for (int c = 0; c < width; ++c) newest[c] = device::to_float(ahead[i].at[c]);
      window.convolve(newest, z);
      activate<heads>(p.in, z);
      device::store(o + i * p.in.D, z);
      device::shift(window.x);
    }
    x += kAhead * p.in.D, o += kAhead * p.in.D;
  }
}

template <class T, int taps, int width>
__device__ inline void store_final_state(const ForwardParams& p, const device::ConvWindow<T, taps, width>& window, int64_t sequence, int64_t d) {
#pragma unroll
  for (int j = 0; j < taps - 1; ++j) {
    const int kept = j - (taps - p.in.W);
#pragma unroll
    for (int c = 0; c < width; ++c)
      if (kept >= 0) p.final_state[(sequence * p.in.D + d + c) * (p.in.W - 1) + kept] = window.x[j][c];
  }
}

// o_t = act(Σ_j weight_j x_{t−taps+1+j}) over one tile of tokens; the last inputs of a sequence become its final state.
template <class T, int taps, int width, bool heads>
__global__ void __launch_bounds__(cuda::kConvThreads, 4) short_conv_forward(ForwardParams p) {
  constexpr int kAhead = cuda::kConvAhead;
  device::let_next_begin();
  const device::ConvInputs& in = p.in;
  const int64_t d = (int64_t{blockIdx.y} * cuda::kConvThreads + threadIdx.x) * width;
  if (d >= in.D) return;
  const int64_t begin = int64_t{blockIdx.x} * cuda::kConvTokens, end = min(in.N, begin + cuda::kConvTokens);
  device::ConvWindow<T, taps, width> window;
  window.load_weight(in, d);
  device::wait_for_earlier_kernels();
  device::SequenceWalk sequence(in.cu_seqlens, in.S, begin);
  if constexpr (width > 1) {
    if (end == begin + cuda::kConvTokens && end <= sequence.end) {
      window.fill(in, sequence, begin, d);
      convolve_inside<heads>(p, window, begin, end, d);
      if (end == sequence.end) store_final_state(p, window, sequence.idx, d);
      return;
    }
  }
  for (int64_t first = begin; first < end; first += kAhead) {
    float ahead[kAhead][width], z[width];
#pragma unroll
    for (int i = 0; i < kAhead; ++i)
      if (first + i < end) device::load(static_cast<const T*>(in.x) + (first + i) * in.D + d, ahead[i]);
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int64_t t = first + i;
      if (t >= end) break;
      if (t == sequence.end) sequence.advance();
      if (t == begin || t == sequence.begin) window.fill(in, sequence, t, d);
      window.convolve(ahead[i], z);
      activate<heads>(in, z);
      device::store(static_cast<T*>(p.o) + t * in.D + d, z);
      device::shift(window.x);
      if (t + 1 == sequence.end) store_final_state(p, window, sequence.idx, d);
    }
  }
}

}  // namespace

ShortConv::Saved ShortConv::forward_cuda(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out) {
  ForwardParams params{cuda::conv_inputs(ctx, in.x, in.weight, in.initial_state, attrs), out.o.raw(), out.final_state.data<float>()};
  const int64_t N = params.in.N, D = params.in.D;
  const bool aligned = cuda::aligned16(in.x) && cuda::aligned16(out.o),
             fused = cuda::fuses_norm(in.x.dtype(), params.in.W, D, attrs.norm_dim, aligned, 8);
  if (attrs.norm_dim > 0 && !fused) {
    Outputs plain{Tensor::empty(ctx, out.o.shape(), out.o.dtype()), out.final_state};
    const Saved saved = forward_cuda(ctx, in, cuda::without_norm(attrs), plain);
    const Shape heads = {N, D / attrs.norm_dim, attrs.norm_dim};
    L2Norm::Outputs y{out.o.view(heads)};
    L2Norm::forward_cuda(ctx, {plain.o.view(heads)}, {.eps = kConvNormEps}, y);
    return saved;
  }
  cuda::pass_empty_sequences(ctx, attrs.seqs, in.initial_state, out.final_state);
  if (fused) {
    params.in.head_lanes = static_cast<int>(attrs.norm_dim / 8);
    cuda::launch(ctx.stream(), "short_conv_norm_forward", &short_conv_forward<device::bf16, 4, 8, true>, cuda::conv_config(N, D, 8), params);
    return {in.x, in.weight, in.initial_state};
  }
  cuda::dispatch_conv<8>(in.x.dtype(), params.in.W, D, aligned, [&]<class T, int taps, int width>() {
    cuda::launch(ctx.stream(), "short_conv_forward", &short_conv_forward<T, taps, width, false>, cuda::conv_config(N, D, width), params);
  });
  return {in.x, in.weight, in.initial_state};
}

}  // namespace braid
