#include "cuda/device/overlap.h"
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

/// What a thread does with its segment, once its operands are in shared memory.
template <class T, class L, int width>
struct ForwardSegment {
  const ForwardParams& p;
  TileShared<width>& shared;
  Staged<T, width> xs;
  Staged<L, width> log_decays;
  int64_t begin, d;  // first token, first channel
  int segment, lane;

  __device__ int64_t first(int i) const { return shared.marks.first[segment * kSegmentTokens + i]; }
  __device__ int64_t last(int i) const { return shared.marks.last[segment * kSegmentTokens + i]; }

  /// a_t and x_t; the first token of a sequence has its initial state in x and needs no other.
  template <TileKind kind>
  __device__ void operands(int i, float (&x)[width], float (&a)[width]) const {
    xs.get(i, x);
    log_decays.get(i, a);
#pragma unroll
    for (int c = 0; c < width; ++c) a[c] = device::fast_exp(a[c]);
    if (kind == TileKind::plain || first(i) < 0 || !p.initial_state || d >= p.D) return;
    float initial[width];
    device::load(p.initial_state + first(i) * p.D + d, initial);
#pragma unroll
    for (int c = 0; c < width; ++c) x[c] = fmaf(a[c], initial[c], x[c]);
  }

  /// Leaves the segment's map in shared.
  template <TileKind kind>
  __device__ void sum_up() const {
    Map map[width];
#pragma unroll
    for (int c = 0; c < width; ++c) map[c] = {1, 0};
#pragma unroll
    for (int i = 0; i < kSegmentTokens; ++i) {
      float x[width], a[width];
      operands<kind>(i, x, a);
      const bool starts = kind == TileKind::marked && first(i) >= 0;
#pragma unroll
      for (int c = 0; c < width; ++c) map[c] = starts ? Map{0, x[c]} : Map{map[c].decay * a[c], fmaf(a[c], map[c].rise, x[c])};
    }
#pragma unroll
    for (int c = 0; c < width; ++c) shared.maps[segment][c * kLanes + lane] = map[c];
  }

  /// Walks from the state that shared has for the segment, and writes.
  template <TileKind kind>
  __device__ void write() const {
    if (d >= p.D) return;
    float h[width];
#pragma unroll
    for (int c = 0; c < width; ++c) h[c] = shared.maps[segment][c * kLanes + lane].rise;
    T* o = static_cast<T*>(p.o) + begin * p.D + d;
#pragma unroll
    for (int i = 0; i < kSegmentTokens; ++i) {
      if (begin + i >= p.N) break;
      float x[width], a[width];
      operands<kind>(i, x, a);
      const bool starts = kind == TileKind::marked && first(i) >= 0;
#pragma unroll
      for (int c = 0; c < width; ++c) h[c] = starts ? x[c] : fmaf(a[c], h[c], x[c]);
      device::store(o + i * p.D, h);
      if (kind == TileKind::marked && last(i) >= 0) device::store(p.final_state + last(i) * p.D + d, h);
    }
  }
};

// h_t = exp(log_decay_t) h_{t−1} + x_t over one tile: each segment's map, the state that enters it, then the segment again from there.
template <class T, class L, int width>
__global__ void __launch_bounds__(kTileThreads) linear_recurrence_forward(ForwardParams p) {
  device::begin_overlapping();
  extern __shared__ uint4 memory[];
  TileShared<width>& shared = *reinterpret_cast<TileShared<width>*>(memory);
  const Staged<T, width> xs{reinterpret_cast<std::byte*>(memory) + sizeof(TileShared<width>)};
  const Staged<L, width> log_decays{xs.base + Staged<T, width>::kBytes};
  const unsigned ticket = draw_ticket(p.exchange, shared.ticket);
  const int64_t tile = ticket / p.exchange.blocks, block = ticket % p.exchange.blocks;
  const int lane = threadIdx.x % kLanes, segment = threadIdx.x / kLanes;
  const int64_t d = (block * kLanes + lane) * width, tile_begin = tile * kTileTokens, begin = tile_begin + segment * kSegmentTokens;
  const ForwardSegment<T, L, width> walk{p, shared, xs, log_decays, begin, d, segment, lane};
  const int64_t start = begin * p.D + d;
  const bool whole = tile_begin + kTileTokens <= p.N && (block + 1) * kLanes * width <= p.D;
#pragma unroll
  for (int i = 0; i < kSegmentTokens; ++i) {
    const bool live = whole || (d < p.D && begin + i < p.N);
    const int64_t at = live ? start + i * p.D : 0;
    xs.fetch(i, static_cast<const T*>(p.x) + at, live);
    log_decays.fetch(i, static_cast<const L*>(p.log_decay) + at, live);
  }
  device::cp_async_commit();
  const bool has_mark = shared.marks.set(p.cu_seqlens, p.S, tile_begin, p.N);
  device::cp_async_wait<0>();
  if (__syncthreads_or(has_mark)) {
    walk.template sum_up<TileKind::marked>();
    join_tiles(shared, p.exchange, tile, block);
    walk.template write<TileKind::marked>();
  } else {
    walk.template sum_up<TileKind::plain>();
    join_tiles(shared, p.exchange, tile, block);
    walk.template write<TileKind::plain>();
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
