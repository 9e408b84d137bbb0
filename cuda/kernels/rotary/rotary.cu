#include <algorithm>
#include <cmath>

#include "cuda/device/overlap.h"
#include "cuda/device/scalar.h"
#include "cuda/device/sequences.h"
#include "cuda/kernels/operands.h"
#include "cuda/runtime/check.h"
#include "ops/rotary.h"

namespace braid {
namespace {

constexpr int kFewSequences = 32;

struct RotaryParams {
  const void* x;                       // [N, H, D]
  void* y;                             // [N, H, D]
  const int64_t* cu_seqlens;           // [S+1]
  const int64_t* offsets;              // [S], or null: few_offsets
  int64_t few_offsets[kFewSequences];  // by value for few sequences: decoding copies nothing and waits for nothing
  int64_t S, H, half;                  // D = 2 · half
  double log_theta;
  float direction;  // −1 turns back
};

// A block turns all heads of one token: y_1 = x_1 cos − x_2 sin, y_2 = x_2 cos + x_1 sin. Angles in double.
template <class T, int width>
__global__ void __launch_bounds__(128) rotary_kernel(RotaryParams p) {
  device::begin_overlapping();
  extern __shared__ float turns[];  // cos [half], sin [half]
  const int64_t n = blockIdx.x;
  const device::SequenceWalk sequence(p.cu_seqlens, p.S, n);
  const int64_t offset = p.offsets ? p.offsets[sequence.idx] : sequence.idx < kFewSequences ? p.few_offsets[sequence.idx] : 0;
  const double position = static_cast<double>(n - sequence.begin + offset);
  for (int64_t i = threadIdx.x; i < p.half; i += blockDim.x) {
    double sine, cosine;
    sincos(position * exp(-static_cast<double>(i) / static_cast<double>(p.half) * p.log_theta), &sine, &cosine);
    turns[i] = static_cast<float>(cosine);
    turns[p.half + i] = p.direction * static_cast<float>(sine);
  }
  __syncthreads();
  const int64_t packs = p.half / width;
  for (int64_t unit = threadIdx.x; unit < p.H * packs; unit += blockDim.x) {
    const int64_t i = unit % packs * width, at = (n * p.H + unit / packs) * 2 * p.half + i;
    float first[width], second[width], y_first[width], y_second[width];
    device::load(static_cast<const T*>(p.x) + at, first);
    device::load(static_cast<const T*>(p.x) + at + p.half, second);
#pragma unroll
    for (int j = 0; j < width; ++j) {
      const float cosine = turns[i + j], sine = turns[p.half + i + j];
      y_first[j] = first[j] * cosine - second[j] * sine;
      y_second[j] = second[j] * cosine + first[j] * sine;
    }
    device::store(static_cast<T*>(p.y) + at, y_first);
    device::store(static_cast<T*>(p.y) + at + p.half, y_second);
  }
}

void turn(Context& ctx, const Tensor& x, const Rotary::Attrs& attrs, float direction, const Tensor& y) {
  cuda::require_kernel_dtype(Rotary::name, x.dtype());
  if (x.numel() == 0) return;
  const bool few = attrs.offsets.size() <= kFewSequences;
  const Tensor offsets = attrs.device_offsets ? attrs.device_offsets : few ? Tensor{} : from_vector(ctx, attrs.offsets, {attrs.seqs.count()});
  RotaryParams params{x.raw(),
                      y.raw(),
                      attrs.seqs.on_device(ctx).data<int64_t>(),
                      cuda::address_of<int64_t>(offsets),
                      {},
                      attrs.seqs.count(),
                      x.size(1),
                      x.size(2) / 2,
                      std::log(attrs.theta),
                      direction};
  if (few) std::copy(attrs.offsets.begin(), attrs.offsets.end(), params.few_offsets);
  const cuda::LaunchConfig config{
      .grid = static_cast<unsigned>(x.size(0)), .block = 128, .shared_bytes = static_cast<size_t>(2 * params.half) * sizeof(float), .overlaps = true};
  const auto run = [&](void (*kernel)(RotaryParams)) { cuda::launch(ctx.stream(), "rotary", kernel, config, params); };
  const bool wide = params.half % 4 == 0 && cuda::aligned16(x) && cuda::aligned16(y);
  if (x.dtype() == DType::bf16) run(wide ? &rotary_kernel<device::bf16, 4> : &rotary_kernel<device::bf16, 1>);
  else run(wide ? &rotary_kernel<float, 4> : &rotary_kernel<float, 1>);
}

}  // namespace

Rotary::Saved Rotary::forward_cuda(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out) {
  turn(ctx, in.x, attrs, 1, out.y);
  return {};
}

void Rotary::backward_cuda(Context& ctx, const Saved&, const Attrs& attrs, const Outputs& d_out, Inputs& d_in) {
  if (d_in.x) turn(ctx, d_out.y, attrs, -1, d_in.x);
}

}  // namespace braid
