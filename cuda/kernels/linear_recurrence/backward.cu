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
constexpr int kBackwardBytes = sizeof(TileShared<width>) + 2 * Staged<T, width>::kBytes + Staged<L, width>::kBytes;

// g_t = d_o_t + c_{t+1}, c_t = exp(log_decay_t) g_t from the last token of a tile to its first; tiles and segments are counted in that
// order. The state that is handed on is c.
template <class T, class L, int width>
__global__ void __launch_bounds__(kTileThreads) linear_recurrence_backward(BackwardParams p) {
  extern __shared__ uint4 memory[];
  TileShared<width>& shared = *reinterpret_cast<TileShared<width>*>(memory);
  const Staged<T, width> d_os{reinterpret_cast<std::byte*>(memory) + sizeof(TileShared<width>)}, befores{d_os.base + Staged<T, width>::kBytes};
  const Staged<L, width> log_decays{befores.base + Staged<T, width>::kBytes};
  const unsigned ticket = draw_ticket(p.exchange, shared.ticket);
  const int64_t tile = ticket / p.exchange.blocks, block = ticket % p.exchange.blocks;
  const int lane = threadIdx.x % kLanes, segment = threadIdx.x / kLanes;
  const int64_t d = (block * kLanes + lane) * width, tile_begin = (p.exchange.tiles - 1 - tile) * kTileTokens;
  const int last_slot = kTileTokens - 1 - segment * kSegmentTokens;  // of the tile's tokens, the one this segment begins with
#pragma unroll
  for (int i = 0; i < kSegmentTokens; ++i) {
    const int64_t t = tile_begin + last_slot - i;
    const bool live = d < p.D && t < p.N;
    const int64_t at = live ? t * p.D + d : 0;
    const bool has_d_o = live && p.d_o, has_before = live && p.d_log_decay && t > 0;  // another sequence's where t is a first token: unused
    log_decays.fetch(i, static_cast<const L*>(p.log_decay) + at, live);
    d_os.fetch(i, static_cast<const T*>(has_d_o ? p.d_o : p.o) + at, has_d_o);
    befores.fetch(i, static_cast<const T*>(p.o) + (has_before ? at - p.D : 0), has_before);
  }
  shared.marks.set(p.cu_seqlens, p.S, tile_begin, p.N);
  device::cp_async_commit();
  device::cp_async_wait<0>();
  __syncthreads();
  const int64_t *firsts = shared.marks.first + last_slot, *lasts = shared.marks.last + last_slot;

  // a_t and d_o_t; the last token of a sequence has d_final_state in d_o and needs no other.
  const auto operands = [&](int i, float(&g)[width], float(&a)[width]) {
    d_os.get(i, g);
    log_decays.get(i, a);
#pragma unroll
    for (int c = 0; c < width; ++c) a[c] = __expf(a[c]);
    if (lasts[-i] < 0 || !p.d_final_state || d >= p.D) return;
    float d_final[width];
    device::load(p.d_final_state + lasts[-i] * p.D + d, d_final);
#pragma unroll
    for (int c = 0; c < width; ++c) g[c] += d_final[c];
  };
  Map map[width];
#pragma unroll
  for (int c = 0; c < width; ++c) map[c] = {1, 0};
#pragma unroll
  for (int i = 0; i < kSegmentTokens; ++i) {
    float g[width], a[width];
    operands(i, g, a);
    const bool ends = lasts[-i] >= 0;
#pragma unroll
    for (int c = 0; c < width; ++c) map[c] = ends ? Map{0, a[c] * g[c]} : Map{map[c].decay * a[c], a[c] * (map[c].rise + g[c])};
  }
#pragma unroll
  for (int c = 0; c < width; ++c) shared.maps[segment][c * kLanes + lane] = map[c];
  join_tiles(shared, p.exchange, tile, block);
  if (d >= p.D) return;
  float carried[width];
#pragma unroll
  for (int c = 0; c < width; ++c) carried[c] = shared.maps[segment][c * kLanes + lane].rise;
#pragma unroll
  for (int i = 0; i < kSegmentTokens; ++i) {
    const int64_t t = tile_begin + last_slot - i;
    if (t >= p.N) continue;
    float g[width], a[width], before[width];
    operands(i, g, a);
    const bool ends = lasts[-i] >= 0;
#pragma unroll
    for (int c = 0; c < width; ++c) {
      g[c] = ends ? g[c] : g[c] + carried[c];
      carried[c] = a[c] * g[c];
    }
    if (p.d_x) device::store(static_cast<T*>(p.d_x) + t * p.D + d, g);
    const int64_t begun = firsts[-i];
    if (begun >= 0 && p.d_initial_state) device::store(p.d_initial_state + begun * p.D + d, carried);
    if (!p.d_log_decay) continue;
    befores.get(i, before);
    if (begun >= 0 && p.initial_state) device::load(p.initial_state + begun * p.D + d, before);
    const bool has_before = begun < 0 || p.initial_state;
#pragma unroll
    for (int c = 0; c < width; ++c) before[c] = has_before ? before[c] * carried[c] : 0.0f;
    device::store(static_cast<L*>(p.d_log_decay) + t * p.D + d, before);
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
