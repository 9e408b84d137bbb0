#include "cuda/kernels/linear_recurrence/tiles.h"
#include "cuda/kernels/operands.h"
#include "cuda/kernels/sequences/empty_sequences.h"
#include "cuda/runtime/check.h"
#include "ops/recurrence/linear_recurrence.h"

namespace braid {
namespace {

using cuda::kTileTokens;
using cuda::kTokensAhead;

struct BackwardParams {
  const void* log_decay;       // [N, D]
  const void* o;               // [N, D]
  const void* d_o;             // [N, D] or null
  const float* initial_state;  // [S, D] or null
  const float* d_final_state;  // [S, D] or null
  const int64_t* cu_seqlens;   // [S+1]
  void* d_x;                   // [N, D] or null
  void* d_log_decay;           // [N, D] or null
  float* d_initial_state;      // [S, D] or null
  float* decay;                // [tiles, D], when summing up
  float* rise;                 // [tiles, D]: the tile's rise, or the gradient that enters it (null: one tile)
  int64_t N, D, S;
  bool writes;  // false: only sum the tile up
};

// g_t = d_o_t + exp(log_decay_{t+1}) g_{t+1} from the last token of a tile to its first; `carried` is exp(log_decay_t) g_t.
template <class T, class L, int width>
__global__ void __launch_bounds__(cuda::kTileThreads) linear_recurrence_backward(BackwardParams p) {
  const int64_t d = (int64_t{blockIdx.y} * cuda::kTileThreads + threadIdx.x) * width;
  if (d >= p.D) return;
  const int64_t begin = int64_t{blockIdx.x} * kTileTokens, end = min(p.N, begin + kTileTokens);
  const L* log_decay = static_cast<const L*>(p.log_decay) + d;
  const T* o = static_cast<const T*>(p.o) + d;
  const T* d_o = p.d_o ? static_cast<const T*>(p.d_o) + d : nullptr;
  const bool needs_o = p.writes && p.d_log_decay;
  device::SequenceWalk sequence(p.cu_seqlens, p.S, end - 1);
  float carried[width] = {}, decay[width];
  if (p.writes && p.rise) device::load(p.rise + blockIdx.x * p.D + d, carried);
#pragma unroll
  for (int c = 0; c < width; ++c) decay[c] = 1;
  for (int64_t last = end - 1; last >= begin; last -= kTokensAhead) {
    float g_ahead[kTokensAhead][width] = {}, a_ahead[kTokensAhead][width], h_ahead[kTokensAhead][width] = {};
#pragma unroll
    for (int i = 0; i < kTokensAhead; ++i) {
      const int64_t t = last - i;
      if (t < begin) continue;
      if (d_o) device::load(d_o + t * p.D, g_ahead[i]);
      device::load(log_decay + t * p.D, a_ahead[i]);
      if (needs_o && t > 0) device::load(o + (t - 1) * p.D, h_ahead[i]);  // another sequence's where t is a first token: unused
    }
#pragma unroll
    for (int i = 0; i < kTokensAhead; ++i) {
      const int64_t t = last - i;
      if (t < begin) break;
      if (t < sequence.begin) sequence.retreat();
      if (t + 1 == sequence.end) {
        if (p.d_final_state) device::load(p.d_final_state + sequence.idx * p.D + d, carried);
#pragma unroll
        for (int c = 0; c < width; ++c) {
          if (!p.d_final_state) carried[c] = 0;
          decay[c] = 0;
        }
      }
      float g[width], before[width];
#pragma unroll
      for (int c = 0; c < width; ++c) {
        const float a = expf(a_ahead[i][c]);
        g[c] = g_ahead[i][c] + carried[c];
        carried[c] = a * g[c];
        decay[c] *= a;
        before[c] = h_ahead[i][c];
      }
      if (!p.writes) continue;
      if (p.d_x) device::store(static_cast<T*>(p.d_x) + t * p.D + d, g);
      const bool is_first = t == sequence.begin;
      if (is_first && p.d_initial_state) device::store(p.d_initial_state + sequence.idx * p.D + d, carried);
      if (!p.d_log_decay) continue;
      if (is_first && p.initial_state) device::load(p.initial_state + sequence.idx * p.D + d, before);
#pragma unroll
      for (int c = 0; c < width; ++c) before[c] = is_first && !p.initial_state ? 0.0f : before[c] * carried[c];
      device::store(static_cast<L*>(p.d_log_decay) + t * p.D + d, before);
    }
  }
  if (p.writes) return;
  device::store(p.decay + blockIdx.x * p.D + d, decay);
  device::store(p.rise + blockIdx.x * p.D + d, carried);
}

using cuda::address;
using cuda::address_of;
using cuda::aligned16;

}  // namespace

void LinearRecurrence::backward_cuda(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in) {
  const int64_t N = saved.o.size(0), D = saved.o.size(1), tiles = cuda::num_tiles(N);
  cuda::pass_empty_sequences(ctx, attrs.seqs, d_out.final_state, d_in.initial_state);
  if (N * D == 0) return;
  Tensor decay, rise;
  if (tiles > 1) decay = Tensor::empty(ctx, {tiles, D}, DType::f32), rise = Tensor::empty(ctx, {tiles, D}, DType::f32);
  const BackwardParams params{saved.log_decay.raw(),
                              saved.o.raw(),
                              address(d_out.o),
                              address_of<float>(saved.initial_state),
                              address_of<float>(d_out.final_state),
                              attrs.seqs.on_device(ctx).data<int64_t>(),
                              address(d_in.x),
                              address(d_in.log_decay),
                              address_of<float>(d_in.initial_state),
                              address_of<float>(decay),
                              address_of<float>(rise),
                              N,
                              D,
                              attrs.seqs.count(),
                              true};
  const bool aligned = aligned16(saved.log_decay) && aligned16(saved.o) && aligned16(saved.initial_state) && aligned16(d_out.o) &&
                       aligned16(d_out.final_state) && aligned16(d_in.x) && aligned16(d_in.log_decay) && aligned16(d_in.initial_state);
  cuda::dispatch_channels(saved.o.dtype(), saved.log_decay.dtype(), D, aligned, [&]<class T, class L, int width>() {
    const int64_t channels = int64_t{cuda::kTileThreads} * width;
    const cuda::LaunchConfig config{.grid = dim3(static_cast<unsigned>(tiles), static_cast<unsigned>((D + channels - 1) / channels)),
                                    .block = cuda::kTileThreads};
    const auto run = [&](const BackwardParams& part) {
      cuda::launch(ctx.stream(), "linear_recurrence_backward", &linear_recurrence_backward<T, L, width>, config, part);
    };
    if (tiles > 1) {
      BackwardParams sums = params;
      sums.writes = false;
      run(sums);
      cuda::join_tiles(ctx, decay, rise, true);
    }
    run(params);
  });
}

}  // namespace braid
