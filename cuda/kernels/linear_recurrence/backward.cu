#include "cuda/device/overlap.h"
#include "cuda/kernels/linear_recurrence/scan.h"
#include "cuda/kernels/operands.h"
#include "cuda/kernels/sequences/empty_sequences.h"
#include "ops/recurrence/linear_recurrence.h"

namespace braid {
namespace {

using namespace cuda;

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
  int64_t N, D, S;
  TileExchange exchange = {};
};

template <class T, class L, int width>
constexpr int kBackwardBytes = sizeof(TileShared<width>) + Staged<T, width>::kBytes + Staged<L, width>::kBytes;

/// What a thread does with its segment, once its operands are in shared memory. Tokens are counted from the segment's last.
template <class T, class L, int width>
struct BackwardSegment {
  const BackwardParams& p;
  TileShared<width>& shared;
  Staged<T, width> d_os;
  Staged<L, width> log_decays;
  int64_t end, d;  // the last token, the first channel
  int slot;        // of that token in its tile
  int segment, lane;
  device::Pack<T, width> befores[kSegmentTokens];  // o of the token before, another sequence's where the token is a first: unused

  __device__ int64_t first(int i) const { return shared.marks.first[slot - i]; }
  __device__ int64_t last(int i) const { return shared.marks.last[slot - i]; }

  /// a_t and d_o_t; the last token of a sequence has d_final_state in d_o and needs no other.
  template <TileKind kind>
  __device__ void operands(int i, float (&g)[width], float (&a)[width]) const {
    d_os.get(i, g);
    log_decays.get(i, a);
#pragma unroll
    for (int c = 0; c < width; ++c) a[c] = device::fast_exp(a[c]);
    if (kind == TileKind::plain || last(i) < 0 || !p.d_final_state || d >= p.D) return;
    float d_final[width];
    device::load(p.d_final_state + last(i) * p.D + d, d_final);
#pragma unroll
    for (int c = 0; c < width; ++c) g[c] += d_final[c];
  }

  /// Leaves the segment's map in shared.
  template <TileKind kind>
  __device__ void sum_up() const {
    Map map[width];
#pragma unroll
    for (int c = 0; c < width; ++c) map[c] = {1, 0};
#pragma unroll
    for (int i = 0; i < kSegmentTokens; ++i) {
      float g[width], a[width];
      operands<kind>(i, g, a);
      const bool ends = kind == TileKind::marked && last(i) >= 0;
#pragma unroll
      for (int c = 0; c < width; ++c) map[c] = ends ? Map{0, a[c] * g[c]} : Map{map[c].decay * a[c], a[c] * (map[c].rise + g[c])};
    }
#pragma unroll
    for (int c = 0; c < width; ++c) shared.maps[segment][c * kLanes + lane] = map[c];
  }

  /// Walks from what shared has for the segment, and writes.
  template <TileKind kind>
  __device__ void write() const {
    if (d >= p.D) return;
    float carried[width];
#pragma unroll
    for (int c = 0; c < width; ++c) carried[c] = shared.maps[segment][c * kLanes + lane].rise;
#pragma unroll
    for (int i = 0; i < kSegmentTokens; ++i) {
      const int64_t t = end - i;
      if (t >= p.N) continue;
      float g[width], a[width];
      operands<kind>(i, g, a);
      const bool ends = kind == TileKind::marked && last(i) >= 0;
#pragma unroll
      for (int c = 0; c < width; ++c) {
        g[c] = ends ? g[c] : g[c] + carried[c];
        carried[c] = a[c] * g[c];
      }
      if (p.d_x) device::store(static_cast<T*>(p.d_x) + t * p.D + d, g);
      const int64_t begun = kind == TileKind::marked ? first(i) : -1;
      if (begun >= 0 && p.d_initial_state) device::store(p.d_initial_state + begun * p.D + d, carried);
      if (!p.d_log_decay) continue;
      float before[width];
#pragma unroll
      for (int c = 0; c < width; ++c) before[c] = device::to_float(befores[i].at[c]);
      if (begun >= 0 && p.initial_state) device::load(p.initial_state + begun * p.D + d, before);
      const bool has_before = begun < 0 || p.initial_state;
#pragma unroll
      for (int c = 0; c < width; ++c) before[c] = has_before ? before[c] * carried[c] : 0.0f;
      device::store(static_cast<L*>(p.d_log_decay) + t * p.D + d, before);
    }
  }
};

// g_t = d_o_t + c_{t+1}, c_t = exp(log_decay_t) g_t from the last token of a tile to its first; tiles and segments are counted in that
// order. The state that is handed on is c.
template <class T, class L, int width>
__global__ void __launch_bounds__(kTileThreads, 4) linear_recurrence_backward(BackwardParams p) {
  device::begin_overlapping();
  extern __shared__ uint4 memory[];
  TileShared<width>& shared = *reinterpret_cast<TileShared<width>*>(memory);
  const Staged<T, width> d_os{reinterpret_cast<std::byte*>(memory) + sizeof(TileShared<width>)};
  const Staged<L, width> log_decays{d_os.base + Staged<T, width>::kBytes};
  const unsigned ticket = draw_ticket(p.exchange, shared.ticket);
  const int64_t tile = ticket / p.exchange.blocks, block = ticket % p.exchange.blocks;
  const int lane = threadIdx.x % kLanes, segment = threadIdx.x / kLanes, slot = kTileTokens - 1 - segment * kSegmentTokens;
  const int64_t d = (block * kLanes + lane) * width, tile_begin = (p.exchange.tiles - 1 - tile) * kTileTokens;
  BackwardSegment<T, L, width> walk{p, shared, d_os, log_decays, tile_begin + slot, d, slot, segment, lane, {}};
  const int64_t start = walk.end * p.D + d;
  const bool whole = tile_begin + kTileTokens <= p.N && (block + 1) * kLanes * width <= p.D && p.d_o;
#pragma unroll
  for (int i = 0; i < kSegmentTokens; ++i) {
    const int64_t t = walk.end - i;
    const bool live = whole || (d < p.D && t < p.N), has_d_o = whole || (live && p.d_o);
    const int64_t at = live ? start - i * p.D : 0;
    log_decays.fetch(i, static_cast<const L*>(p.log_decay) + at, live);
    d_os.fetch(i, static_cast<const T*>(has_d_o ? p.d_o : p.o) + at, has_d_o);
    if (live && p.d_log_decay && t > 0) walk.befores[i] = *reinterpret_cast<const device::Pack<T, width>*>(static_cast<const T*>(p.o) + at - p.D);
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

void LinearRecurrence::backward_cuda(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in) {
  const int64_t N = saved.o.size(0), D = saved.o.size(1);
  pass_empty_sequences(ctx, attrs.seqs, d_out.final_state, d_in.initial_state);
  if (N * D == 0) return;
  const BackwardParams params{saved.log_decay.raw(),
                              saved.o.raw(),
                              address(d_out.o),
                              address_of<float>(saved.initial_state),
                              address_of<float>(d_out.final_state),
                              attrs.seqs.on_device(ctx).data<int64_t>(),
                              address(d_in.x),
                              address(d_in.log_decay),
                              address_of<float>(d_in.initial_state),
                              N,
                              D,
                              attrs.seqs.count()};
  const bool aligned = aligned16(saved.log_decay) && aligned16(saved.o) && aligned16(saved.initial_state) && aligned16(d_out.o) &&
                       aligned16(d_out.final_state) && aligned16(d_in.x) && aligned16(d_in.log_decay) && aligned16(d_in.initial_state);
  dispatch_channels(saved.o.dtype(), saved.log_decay.dtype(), D, aligned, [&]<class T, class L, int width>() {
    launch_tiles<width>(ctx, "linear_recurrence_backward", &linear_recurrence_backward<T, L, width>, kBackwardBytes<T, L, width>, params);
  });
}

}  // namespace braid
