#include "cuda/kernels/attention/fast.h"
#include "cuda/kernels/attention/softmax.h"
#include "cuda/runtime/check.h"

namespace braid::attention {
namespace {

constexpr int kThreads = 128, kQueries = 64;

template <int dim>
struct Plan {
  static constexpr int kDim = dim;
  static constexpr int kKeys = dim > 128 ? 32 : 64;
  using Queries = SharedTile<kQueries, dim>;
  using Keys = SharedTile<kKeys, dim>;
  static constexpr int kSharedBytes = Queries::kBytes + 4 * Keys::kBytes;  // keys and values, two of each
};

// A block has 64 queries of one head, a warp 16 of them; keys and values come in tiles, the last (masked) ones first, the copy of
// the next tile under the products of this one.
template <class P>
__global__ void __launch_bounds__(kThreads, P::kDim > 128 ? 1 : 2) forward_kernel(Problem p) {
  extern __shared__ __align__(128) uint8_t shared[];
  constexpr int D = P::kDim, kKeys = P::kKeys;
  const uint32_t base = device::shared_address(shared);
  const typename P::Queries q{base};
  const auto keys_at = [&](int stage) { return typename P::Keys{base + P::Queries::kBytes + 2 * stage * P::Keys::kBytes}; };
  const auto values_at = [&](int stage) { return typename P::Keys{base + P::Queries::kBytes + (2 * stage + 1) * P::Keys::kBytes}; };

  const int64_t tiles = gridDim.x / p.H, h = blockIdx.x % p.H, hk = h / (p.H / p.HK);
  const Tile tile = find_tile(p, p.cu_q, kQueries, tiles - 1 - blockIdx.x / p.H);  // those with the most keys first
  if (tile.first >= tile.lq) return;
  const int64_t count = min(int64_t{kQueries}, tile.lq - tile.first), token = tile.q_begin + tile.first;
  const Range keys = keys_of(p, tile, tile.first, count);
  const int64_t first_position = tile.position(tile.first), q_stride = p.H * D, k_stride = p.HK * D;
  const bf16* k_from = static_cast<const bf16*>(p.k) + (tile.k_begin * p.HK + hk) * D;
  const bf16* v_from = static_cast<const bf16*>(p.v) + (tile.k_begin * p.HK + hk) * D;
  const int num_tiles = static_cast<int>((keys.end - keys.begin + kKeys - 1) / kKeys);
  const auto load_keys = [&](int t) {
    const int64_t key = keys.begin + int64_t{t} * kKeys;
    keys_at(t % 2).template load<kThreads>(k_from + key * k_stride, k_stride, keys.end - key);
    values_at(t % 2).template load<kThreads>(v_from + key * k_stride, k_stride, keys.end - key);
  };
  q.template load<kThreads>(static_cast<const bf16*>(p.q) + (token * p.H + h) * D, q_stride, count);
  load_keys(num_tiles - 1);
  device::cp_async_commit();

  Sums<D> o;
  clear<D>(o);
  RunningSoftmax softmax;
  const int row = threadIdx.x / 32 * 16;
  for (int t = num_tiles - 1; t >= 0; --t) {
    if (t > 0) load_keys(t - 1);
    device::cp_async_commit();
    device::cp_async_wait<1>();
    __syncthreads();
    Sums<kKeys> s;
    multiply_rows<kQueries, kKeys, D>(s, q, row, keys_at(t % 2));
    const int64_t key = keys.begin + int64_t{t} * kKeys;
    if (!all_visible(p, first_position, first_position + kQueries - 1, key, kKeys))
      mask_keys<kKeys>(s, static_cast<int>(first_position - key) + row, static_cast<int>(p.window), -INFINITY);
    float shrink[2];
    softmax.update<kKeys>(s, p.scale * kLog2E, shrink);
#pragma unroll
    for (int j = 0; j < D / 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) o[j][i] *= shrink[i / 2];
    add_product<kKeys, D>(o, s, values_at(t % 2));
    __syncthreads();  // this stage is read: the next turn overwrites it
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int r = row + threadIdx.x % 32 / 4 + 8 * i;
    const float l = quad_sum(softmax.l[i]);
    if (r >= count) continue;
    store_row<D>(static_cast<bf16*>(p.o) + ((token + r) * p.H + h) * D, o, i, 1 / l);
    if (threadIdx.x % 4 == 0) p.lse[(token + r) * p.H + h] = softmax.m[i] * p.scale + logf(l);
  }
}

template <int D>
void launch_forward(Context& ctx, const Problem& problem) {
  using P = Plan<D>;
  const int64_t blocks = num_tiles(problem.Nq, problem.S, kQueries) * problem.H;
  const cuda::LaunchConfig config = {.grid = static_cast<unsigned>(blocks), .block = kThreads, .shared_bytes = P::kSharedBytes};
  cuda::launch(ctx.stream(), "attention_mma_forward", &forward_kernel<P>, config, problem);
}

}  // namespace

void mma_forward(Context& ctx, const Problem& problem) {
  if (problem.D == 64) launch_forward<64>(ctx, problem);
  else if (problem.D == 128) launch_forward<128>(ctx, problem);
  else launch_forward<256>(ctx, problem);
}

}  // namespace braid::attention
