#include "cuda/device/math.h"
#include "cuda/device/overlap.h"
#include "cuda/kernels/norms/column_sums.h"
#include "cuda/kernels/sequences/empty_sequences.h"
#include "cuda/kernels/short_conv/plan.h"
#include "ops/l2_norm.h"

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

/// d_z from z and d_o, in place of d_o.
template <bool heads, int width>
__device__ inline void conv_slope(const device::ConvInputs& in, const float (&z)[width], float (&d)[width]) {
  float s[width];
#pragma unroll
  for (int c = 0; c < width; ++c) s[c] = in.silu ? device::fast_sigmoid(z[c]) : 1.0f;
  if constexpr (heads) {
    float activated[width];
#pragma unroll
    for (int c = 0; c < width; ++c) activated[c] = z[c] * s[c];
    device::normalize_head_backward(activated, d, in.head_lanes, static_cast<float>(kConvNormEps));
  }
  if (!in.silu) return;
#pragma unroll
  for (int c = 0; c < width; ++c) d[c] *= s[c] * (1.0f + z[c] * (1.0f - s[c]));
}

/// What slides over tokens in the backward. sums_j: gradient so far of input t − taps + 1 + j.
template <class T, int taps, int width>
struct GradientWindow {
  device::ConvWindow<T, taps, width> inputs;
  float sums[taps][width], d_weight[taps][width];

  __device__ void clear_sums() {
#pragma unroll
    for (int j = 0; j < taps; ++j)
#pragma unroll
      for (int c = 0; c < width; ++c) sums[j][c] = 0;
  }
  /// Takes token t with d = d_o; its weights' gradient belongs to the tile that has it.
  template <bool heads>
  __device__ void take(const device::ConvInputs& in, const float (&x)[width], float (&d)[width], bool adds_weight) {
    float z[width];
    inputs.convolve(x, z);
    conv_slope<heads>(in, z, d);
#pragma unroll
    for (int c = 0; c < width; ++c) {
#pragma unroll
      for (int j = 0; j < taps; ++j) {
        sums[j][c] += inputs.weight[j][c] * d[c];
        if (adds_weight) d_weight[j][c] += inputs.x[j][c] * d[c];
      }
    }
  }
  __device__ void shift() {
    device::shift(inputs.x);
    device::shift(sums);
  }
};

/// A whole tile inside one sequence, without gradients of states: nothing is asked of a token but its values.
template <bool heads, class T, int taps, int width>
__device__ inline void walk_inside(const BackwardParams& p, GradientWindow<T, taps, width>& window, int64_t begin, int64_t end, int64_t limit,
                                   int64_t d) {
  constexpr int kAhead = cuda::kConvInsideAhead;
  using Packed = device::Pack<T, width>;
  const int64_t D = p.in.D;
  const T *x = static_cast<const T*>(p.in.x) + d, *d_o = static_cast<const T*>(p.d_o) + d;
  T* d_x = static_cast<T*>(p.d_x) + d;
  const auto take = [&](const Packed& x_t, const Packed& d_o_t, bool adds_weight) {
    float newest[width], gradient[width];
#pragma unroll
    for (int c = 0; c < width; ++c) newest[c] = device::to_float(x_t.at[c]), gradient[c] = device::to_float(d_o_t.at[c]);
    window.template take<heads>(p.in, newest, gradient, adds_weight);
  };
  for (int64_t first = begin; first < end; first += kAhead) {
    Packed x_ahead[kAhead], d_ahead[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      x_ahead[i] = *reinterpret_cast<const Packed*>(x + (first + i) * D);
      d_ahead[i] = *reinterpret_cast<const Packed*>(d_o + (first + i) * D);
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      take(x_ahead[i], d_ahead[i], true);
      const int64_t complete = first + i - (taps - 1);
      if (complete >= begin) device::store(d_x + complete * D, window.sums[0]);
      window.shift();
    }
  }
#pragma unroll
  for (int j = 0; j < taps - 1; ++j) {
    const int64_t t = end + j;
    if (t < limit) take(*reinterpret_cast<const Packed*>(x + t * D), *reinterpret_cast<const Packed*>(d_o + t * D), false);
    device::store(d_x + (t - (taps - 1)) * D, window.sums[0]);
    window.shift();
  }
}

// Tokens t of a tile, and those after it that its inputs reach: d_z_t = d_o_t act'(z_t) adds weight_j d_z_t to the gradient of input
// t − taps + 1 + j, which is complete once j = 0 was added. d_weight_j = Σ_t d_z_t x_{t−taps+1+j}.
template <class T, int taps, int width, bool heads>
__global__ void __launch_bounds__(cuda::kConvThreads, taps > 4    ? 1
                                                      : width > 4 ? 2
                                                                  : 4) short_conv_backward(BackwardParams p) {
  device::begin_overlapping();
  constexpr int kAhead = taps > 4 ? 1 : cuda::kConvAhead;
  const device::ConvInputs& in = p.in;
  const int64_t d = (int64_t{blockIdx.y} * cuda::kConvThreads + threadIdx.x) * width;
  if (d >= in.D) return;
  const int64_t begin = int64_t{blockIdx.x} * cuda::kConvTokens, end = min(in.N, begin + cuda::kConvTokens);
  const int64_t limit = min(end + taps - 1, device::SequenceWalk(in.cu_seqlens, in.S, end - 1).end);
  const InputGradients<T, width> to{p, d, begin, end};
  device::SequenceWalk sequence(in.cu_seqlens, in.S, begin);
  GradientWindow<T, taps, width> window = {};
  window.inputs.load_weight(in, d);
  const bool inside = width > 1 && end == begin + cuda::kConvTokens && end <= sequence.end && p.d_x && p.d_o &&
                      (!p.d_final_state || end + taps - 1 <= sequence.end) && (!p.d_initial_state || begin > sequence.begin);
  if (inside) {
    window.inputs.fill(in, sequence, begin, d);
    walk_inside<heads>(p, window, begin, end, limit, d);
  }
  for (int64_t first = inside ? limit : begin; first < limit; first += kAhead) {
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
        window.inputs.fill(in, sequence, t, d);
        window.clear_sums();
      }
      window.template take<heads>(in, ahead[i], d_ahead[i], t < end);
      const int64_t local = t - sequence.begin;
      to.store(sequence, local - (taps - 1), window.sums[0]);
      window.shift();
      if (t + 1 != sequence.end) continue;
#pragma unroll
      for (int j = 0; j < taps - 1; ++j) to.store(sequence, local - (taps - 2) + j, window.sums[j]);
    }
  }
  if (!p.d_weight) return;
#pragma unroll
  for (int j = 0; j < taps; ++j) {
    const int tap = j - (taps - in.W);
#pragma unroll
    for (int c = 0; c < width; ++c)
      if (tap >= 0) p.d_weight[(blockIdx.x * in.D + d + c) * in.W + tap] = window.d_weight[j][c];
  }
}

using cuda::address_of;
using cuda::aligned16;

/// Gradients of the outputs before heads are divided by their length, where that is a launch of its own.
ShortConv::Outputs before_norm(Context& ctx, const ShortConv::Saved& saved, const ShortConv::Attrs& attrs, const ShortConv::Outputs& d_out) {
  if (!d_out.o) return d_out;
  const ShortConv::Inputs in{saved.x, saved.weight, saved.initial_state};
  const ShortConv::Attrs plain = cuda::without_norm(attrs);
  ShortConv::Outputs out = ShortConv::allocate(ctx, in, plain);
  ShortConv::forward_cuda(ctx, in, plain, out);
  const Shape heads = {saved.x.size(0), saved.x.size(1) / attrs.norm_dim, attrs.norm_dim};
  L2Norm::Outputs y{Tensor::empty(ctx, heads, out.o.dtype())};
  const L2Norm::Saved kept = L2Norm::forward_cuda(ctx, {out.o.view(heads)}, {.eps = kConvNormEps}, y);
  L2Norm::Inputs d_plain{y.y};  // its values are not needed any more
  L2Norm::backward_cuda(ctx, kept, {.eps = kConvNormEps}, {d_out.o.view(heads)}, d_plain);
  return {d_plain.x.view(saved.x.shape()), d_out.final_state};
}

}  // namespace

void ShortConv::backward_cuda(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in) {
  const int64_t N = saved.x.size(0), D = saved.x.size(1), W = saved.weight.size(1), tiles = cuda::num_conv_tiles(N);
  const bool aligned = aligned16(saved.x) && aligned16(d_out.o) && aligned16(d_in.x);
  const int width = attrs.norm_dim == 256 ? 8 : 4;  // of threads that divide heads
  const bool fused = cuda::fuses_norm(saved.x.dtype(), W, D, attrs.norm_dim, aligned, width);
  if (attrs.norm_dim > 0 && !fused) return backward_cuda(ctx, saved, cuda::without_norm(attrs), before_norm(ctx, saved, attrs, d_out), d_in);
  cuda::pass_empty_sequences(ctx, attrs.seqs, d_out.final_state, d_in.initial_state);
  const Tensor partials = d_in.weight ? Tensor::empty(ctx, {tiles, D * W}, DType::f32) : Tensor{};
  BackwardParams params{cuda::conv_inputs(ctx, saved.x, saved.weight, saved.initial_state, attrs),
                        cuda::address(d_out.o),
                        address_of<float>(d_out.final_state),
                        cuda::address(d_in.x),
                        address_of<float>(d_in.initial_state),
                        address_of<float>(partials)};
  if (fused) {
    params.in.head_lanes = static_cast<int>(attrs.norm_dim / width);
    const auto kernel = width == 8 ? &short_conv_backward<device::bf16, 4, 8, true> : &short_conv_backward<device::bf16, 4, 4, true>;
    cuda::launch(ctx.stream(), "short_conv_norm_backward", kernel, cuda::conv_config(N, D, width), params);
  } else {
    cuda::dispatch_conv<4>(saved.x.dtype(), params.in.W, D, aligned, [&]<class T, int taps, int width>() {
      cuda::launch(ctx.stream(), "short_conv_backward", &short_conv_backward<T, taps, width, false>, cuda::conv_config(N, D, width), params);
    });
  }
  if (d_in.weight) cuda::sum_partials(ctx, partials, d_in.weight);
}

}  // namespace braid
