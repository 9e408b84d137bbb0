#include "cuda/kernels/linear_recurrence/tiles.h"
#include "cuda/kernels/operands.h"
#include "cuda/kernels/sequences/empty_sequences.h"
#include "cuda/runtime/check.h"
#include "ops/recurrence/linear_recurrence.h"

namespace braid {
namespace {

using cuda::kTileTokens;
using cuda::kTokensAhead;

struct ForwardParams {
  const void* x;               // [N, D]
  const void* log_decay;       // [N, D]
  const float* initial_state;  // [S, D] or null
  const int64_t* cu_seqlens;   // [S+1]
  void* o;                     // [N, D]; null: only sum the tile up
  float* final_state;          // [S, D]
  float* decay;                // [tiles, D], when summing up
  float* rise;                 // [tiles, D]: the tile's rise, or the state that enters it (null: one tile)
  int64_t N, D, S;
};

// h_t = exp(log_decay_t) h_{t−1} + x_t over one tile, `width` channels a thread.
template <class T, class L, int width>
__global__ void __launch_bounds__(cuda::kTileThreads) linear_recurrence_forward(ForwardParams p) {
  const int64_t d = (int64_t{blockIdx.y} * cuda::kTileThreads + threadIdx.x) * width;
  if (d >= p.D) return;
  const int64_t begin = int64_t{blockIdx.x} * kTileTokens, end = min(p.N, begin + kTileTokens);
  const T* x = static_cast<const T*>(p.x) + d;
  const L* log_decay = static_cast<const L*>(p.log_decay) + d;
  const bool writes = p.o != nullptr;
  device::SequenceWalk sequence(p.cu_seqlens, p.S, begin);
  float h[width] = {}, decay[width];
  if (writes && p.rise) device::load(p.rise + blockIdx.x * p.D + d, h);
#pragma unroll
  for (int c = 0; c < width; ++c) decay[c] = 1;
  for (int64_t first = begin; first < end; first += kTokensAhead) {
    float x_ahead[kTokensAhead][width], a_ahead[kTokensAhead][width];
#pragma unroll
    for (int i = 0; i < kTokensAhead; ++i) {
      if (first + i >= end) continue;
      device::load(x + (first + i) * p.D, x_ahead[i]);
      device::load(log_decay + (first + i) * p.D, a_ahead[i]);
    }
#pragma unroll
    for (int i = 0; i < kTokensAhead; ++i) {
      const int64_t t = first + i;
      if (t >= end) break;
      if (t == sequence.end) sequence.advance();
      if (t == sequence.begin) {
        if (p.initial_state) device::load(p.initial_state + sequence.idx * p.D + d, h);
#pragma unroll
        for (int c = 0; c < width; ++c) {
          if (!p.initial_state) h[c] = 0;
          decay[c] = 0;
        }
      }
#pragma unroll
      for (int c = 0; c < width; ++c) {
        const float a = expf(a_ahead[i][c]);
        h[c] = a * h[c] + x_ahead[i][c];
        decay[c] *= a;
      }
      if (!writes) continue;
      device::store(static_cast<T*>(p.o) + t * p.D + d, h);
      if (t + 1 == sequence.end) device::store(p.final_state + sequence.idx * p.D + d, h);
    }
  }
  if (writes) return;
  device::store(p.decay + blockIdx.x * p.D + d, decay);
  device::store(p.rise + blockIdx.x * p.D + d, h);
}

using cuda::address_of;
using cuda::aligned16;

}  // namespace

LinearRecurrence::Saved LinearRecurrence::forward_cuda(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out) {
  cuda::require_kernel_dtype(name, in.x.dtype());
  const Saved saved{in.log_decay, in.initial_state, out.o};
  const int64_t N = in.x.size(0), D = in.x.size(1), tiles = cuda::num_tiles(N);
  cuda::pass_empty_sequences(ctx, attrs.seqs, in.initial_state, out.final_state);
  if (N * D == 0) return saved;
  Tensor decay, rise;
  if (tiles > 1) decay = Tensor::empty(ctx, {tiles, D}, DType::f32), rise = Tensor::empty(ctx, {tiles, D}, DType::f32);
  const int64_t* cu_seqlens = attrs.seqs.on_device(ctx).data<int64_t>();
  const ForwardParams params{in.x.raw(),
                             in.log_decay.raw(),
                             address_of<float>(in.initial_state),
                             cu_seqlens,
                             out.o.raw(),
                             out.final_state.data<float>(),
                             address_of<float>(decay),
                             address_of<float>(rise),
                             N,
                             D,
                             attrs.seqs.count()};
  const bool aligned = aligned16(in.x) && aligned16(in.log_decay) && aligned16(in.initial_state);
  cuda::dispatch_channels(in.x.dtype(), in.log_decay.dtype(), D, aligned, [&]<class T, class L, int width>() {
    const int64_t channels = int64_t{cuda::kTileThreads} * width;
    const cuda::LaunchConfig config{.grid = dim3(static_cast<unsigned>(tiles), static_cast<unsigned>((D + channels - 1) / channels)),
                                    .block = cuda::kTileThreads};
    const auto run = [&](const ForwardParams& part) {
      cuda::launch(ctx.stream(), "linear_recurrence_forward", &linear_recurrence_forward<T, L, width>, config, part);
    };
    if (tiles > 1) {
      ForwardParams sums = params;
      sums.o = nullptr;
      run(sums);
      cuda::join_tiles(ctx, decay, rise, false);
    }
    run(params);
  });
  return saved;
}

}  // namespace braid
