#include "cuda/kernels/linear_recurrence/scan.h"
#include "cuda/kernels/operands.h"
#include "cuda/kernels/sequences/empty_sequences.h"
#include "ops/recurrence/linear_recurrence.h"

namespace braid {
namespace {

using namespace cuda;

struct ForwardParams {
  const void* x;               // [N, D]
  const void* log_decay;       // [N, D]
  const float* initial_state;  // [S, D] or null
  const int64_t* cu_seqlens;   // [S+1]
  void* o;                     // [N, D]
  float* final_state;          // [S, D]
  int64_t N, D, S;
  TileExchange exchange = {};
};

template <class T, class L, int width>
constexpr int kForwardBytes = sizeof(TileShared<width>) + Staged<T, width>::kBytes + Staged<L, width>::kBytes;

// h_t = exp(log_decay_t) h_{t−1} + x_t over one tile: each segment's map, the state that enters it, then the segment again from there.
template <class T, class L, int width>
__global__ void __launch_bounds__(kTileThreads) linear_recurrence_forward(ForwardParams p) {
  extern __shared__ uint4 memory[];
  TileShared<width>& shared = *reinterpret_cast<TileShared<width>*>(memory);
  const Staged<T, width> xs{reinterpret_cast<std::byte*>(memory) + sizeof(TileShared<width>)};
  const Staged<L, width> log_decays{xs.base + Staged<T, width>::kBytes};
  const unsigned ticket = draw_ticket(p.exchange, shared.ticket);
  const int64_t tile = ticket / p.exchange.blocks, block = ticket % p.exchange.blocks;
  const int lane = threadIdx.x % kLanes, segment = threadIdx.x / kLanes;
  const int64_t d = (block * kLanes + lane) * width, tile_begin = tile * kTileTokens, begin = tile_begin + segment * kSegmentTokens;
#pragma unroll
  for (int i = 0; i < kSegmentTokens; ++i) {
    const bool live = d < p.D && begin + i < p.N;
    const int64_t at = live ? (begin + i) * p.D + d : 0;
    xs.fetch(i, static_cast<const T*>(p.x) + at, live);
    log_decays.fetch(i, static_cast<const L*>(p.log_decay) + at, live);
  }
  shared.marks.set(p.cu_seqlens, p.S, tile_begin, p.N);
  device::cp_async_commit();
  device::cp_async_wait<0>();
  __syncthreads();
  const int64_t* firsts = shared.marks.first + segment * kSegmentTokens;

  // a_t and x_t; the first token of a sequence has its initial state in x and needs no other.
  const auto operands = [&](int i, float(&x)[width], float(&a)[width]) {
    xs.get(i, x);
    log_decays.get(i, a);
#pragma unroll
    for (int c = 0; c < width; ++c) a[c] = __expf(a[c]);
    if (firsts[i] < 0 || !p.initial_state || d >= p.D) return;
    float initial[width];
    device::load(p.initial_state + firsts[i] * p.D + d, initial);
#pragma unroll
    for (int c = 0; c < width; ++c) x[c] = fmaf(a[c], initial[c], x[c]);
  };
  Map map[width];
#pragma unroll
  for (int c = 0; c < width; ++c) map[c] = {1, 0};
#pragma unroll
  for (int i = 0; i < kSegmentTokens; ++i) {
    float x[width], a[width];
    operands(i, x, a);
    const bool starts = firsts[i] >= 0;
#pragma unroll
    for (int c = 0; c < width; ++c) map[c] = starts ? Map{0, x[c]} : Map{map[c].decay * a[c], fmaf(a[c], map[c].rise, x[c])};
  }
#pragma unroll
  for (int c = 0; c < width; ++c) shared.maps[segment][c * kLanes + lane] = map[c];
  join_tiles(shared, p.exchange, tile, block);
  if (d >= p.D) return;
  float h[width];
#pragma unroll
  for (int c = 0; c < width; ++c) h[c] = shared.maps[segment][c * kLanes + lane].rise;
#pragma unroll
  for (int i = 0; i < kSegmentTokens; ++i) {
    if (begin + i >= p.N) break;
    float x[width], a[width];
    operands(i, x, a);
    const bool starts = firsts[i] >= 0;
#pragma unroll
    for (int c = 0; c < width; ++c) h[c] = starts ? x[c] : fmaf(a[c], h[c], x[c]);
    device::store(static_cast<T*>(p.o) + (begin + i) * p.D + d, h);
    const int64_t ended = shared.marks.last[segment * kSegmentTokens + i];
    if (ended >= 0) device::store(p.final_state + ended * p.D + d, h);
  }
}

}  // namespace

LinearRecurrence::Saved LinearRecurrence::forward_cuda(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out) {
  require_kernel_dtype(name, in.x.dtype());
  const Saved saved{in.log_decay, in.initial_state, out.o};
  const int64_t N = in.x.size(0), D = in.x.size(1);
  pass_empty_sequences(ctx, attrs.seqs, in.initial_state, out.final_state);
  if (N * D == 0) return saved;
  const ForwardParams params{in.x.raw(),
                             in.log_decay.raw(),
                             address_of<float>(in.initial_state),
                             attrs.seqs.on_device(ctx).data<int64_t>(),
                             out.o.raw(),
                             out.final_state.data<float>(),
                             N,
                             D,
                             attrs.seqs.count()};
  const bool aligned = aligned16(in.x) && aligned16(in.log_decay) && aligned16(in.initial_state);
  dispatch_channels(in.x.dtype(), in.log_decay.dtype(), D, aligned, [&]<class T, class L, int width>() {
    launch_tiles<width>(ctx, "linear_recurrence_forward", &linear_recurrence_forward<T, L, width>, kForwardBytes<T, L, width>, params);
  });
  return saved;
}

}  // namespace braid
