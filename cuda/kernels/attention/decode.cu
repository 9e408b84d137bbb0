#include <algorithm>

#include "cuda/device/overlap.h"
#include "cuda/kernels/attention/fast.h"
#include "cuda/kernels/attention/softmax.h"
#include "cuda/runtime/check.h"
#include "cuda/runtime/runtime.h"

namespace braid::attention {
namespace {

constexpr int kWarps = 4, kThreads = 32 * kWarps, kRows = 16;

template <int dim>
struct Plan {
  static constexpr int kDim = dim;
  static constexpr int kKeys = dim > 64 ? 16 : 32;
  static constexpr int kStages = 3;
  static constexpr int kBlocksPerMultiprocessor = dim > 128 ? 1 : 2;
  using Queries = SharedTile<kRows, dim>;
  using Keys = SharedTile<kKeys, dim>;
  static constexpr int kWarpBytes = 2 * kStages * Keys::kBytes;
  static constexpr int kSharedBytes = Queries::kBytes + kWarps * kWarpBytes;
  static_assert(kWarpBytes >= kRows * (dim + 2) * 4, "a warp's sums replace its keys");
};

struct Params {
  Problem problem;
  int queries;  // of a block: as many as fit with all heads of their group into 16 rows
  int splits;   // of the keys
  float* o;     // [splits, Nq, H, D]: sums of a split, not divided; null when splits is 1
  float2* sum;  // [splits, Nq, H]: highest score (scaled by scale · log2 e), sum of exp2 over it
};

/// This warp's keys: tiles warp, warp + 4, … of the block's split.
struct Walk {
  int64_t begin, end;
};
template <class P>
__device__ Walk find_walk(const Range& keys, int split, int splits) {
  constexpr int64_t kStep = kWarps * P::kKeys;
  const int64_t steps = (keys.end - keys.begin + kStep - 1) / kStep, share = (steps + splits - 1) / splits * kStep;
  const int64_t begin = min(keys.end, keys.begin + split * share);
  return {begin, min(keys.end, begin + share)};
}

/// One warp over its tiles; stages are its own, so that it waits for nobody.
template <class P>
__device__ void walk_keys(const Params& params, const Tile& tile, const Walk& walk, int64_t hk, uint32_t shared, Sums<P::kDim>& o,
                          RunningSoftmax& softmax) {
  constexpr int D = P::kDim, kKeys = P::kKeys;
  const Problem& p = params.problem;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = static_cast<int>(p.H / p.HK);
  const typename P::Queries q{shared};
  const uint32_t base = shared + P::Queries::kBytes + warp * P::kWarpBytes;
  const int64_t stride = p.HK * D, offset = (tile.k_begin * p.HK + hk) * D;
  const auto load = [&](int64_t key, int stage) {
    const int64_t at = offset + min(key, walk.end - 1) * stride;
    typename P::Keys{base + 2 * stage * P::Keys::kBytes}.template load<32>(static_cast<const bf16*>(p.k) + at, stride, walk.end - key, lane);
    typename P::Keys{base + (2 * stage + 1) * P::Keys::kBytes}.template load<32>(static_cast<const bf16*>(p.v) + at, stride, walk.end - key, lane);
  };
  constexpr int64_t kStep = kWarps * kKeys;
  int64_t next = walk.begin + warp * kKeys;
  for (int stage = 0; stage < P::kStages - 1; ++stage, next += kStep) {
    if (next < walk.end) load(next, stage);
    device::cp_async_commit();
  }
  int stage = 0;
  for (int64_t key = walk.begin + warp * kKeys; key < walk.end; key += kStep, next += kStep) {
    if (next < walk.end) load(next, (stage + P::kStages - 1) % P::kStages);
    device::cp_async_commit();
    device::cp_async_wait<P::kStages - 1>();
    __syncwarp();
    Sums<kKeys> s;
    multiply_rows<kRows, kKeys, D>(s, q, 0, typename P::Keys{base + 2 * stage * P::Keys::kBytes});
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int64_t position = tile.position(tile.first + (lane / 4 + 8 * i) / group);
#pragma unroll
      for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
        for (int c = 0; c < 2; ++c)
          if (!sees(p, position, key + 8 * j + 2 * (lane % 4) + c)) s[j][2 * i + c] = -INFINITY;
    }
    float shrink[2];
    softmax.update<kKeys>(s, p.scale * kLog2E, shrink);
#pragma unroll
    for (int j = 0; j < D / 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) o[j][i] *= shrink[i / 2];
    add_product<kKeys, D>(o, s, typename P::Keys{base + (2 * stage + 1) * P::Keys::kBytes});
    __syncwarp();  // the stage is read
    stage = (stage + 1) % P::kStages;
  }
}

/// Over the partial sums of parts 0, 1, …: highest score and sum of exp2 over it, part(i) = (score, sum).
template <class Part>
__device__ float2 joined(int parts, Part&& part) {
  float highest = -INFINITY, sum = 0;
  for (int i = 0; i < parts; ++i) highest = fmaxf(highest, part(i).x);
  for (int i = 0; i < parts; ++i) sum += part(i).y == 0 ? 0 : part(i).y * exp2_approx(part(i).x - highest);
  return {highest, sum};
}
/// The weight of a part in the joined sum; none where it saw no key.
__device__ float weight_of(float2 part, float highest) { return part.y == 0 ? 0 : exp2_approx(part.x - highest); }

// A block has the queries of one key head that fit into 16 rows (query by query, the heads of the group side by side) and one split of the
// keys; its warps take the split's tiles in turns and their sums are joined at the end, in their order.
template <class P>
__global__ void __launch_bounds__(kThreads) decode_kernel(Params params) {
  device::begin_overlapping();
  extern __shared__ __align__(128) uint8_t shared[];
  constexpr int D = P::kDim;
  const Problem& p = params.problem;
  const int split = blockIdx.x % params.splits, group = static_cast<int>(p.H / p.HK);
  const int64_t hk = blockIdx.x / params.splits % p.HK;
  const Tile tile = find_tile(p, p.cu_q, params.queries, blockIdx.x / params.splits / p.HK);
  if (tile.first >= tile.lq) return;
  const int count = static_cast<int>(min(int64_t{params.queries}, tile.lq - tile.first)), rows = count * group;
  const int64_t token = tile.q_begin + tile.first;
  const uint32_t base = device::shared_address(shared);
  for (int i = threadIdx.x; i < kRows * (D / 8); i += kThreads) {
    const int row = i / (D / 8), piece = i % (D / 8);
    const int64_t from = row < rows ? (token + row / group) * p.H + hk * group + row % group : token * p.H;
    device::cp_async16(typename P::Queries{base}.at(row, piece), static_cast<const bf16*>(p.q) + from * D + piece * 8, row < rows);
  }
  device::cp_async_commit();
  device::cp_async_wait<0>();
  __syncthreads();
  Sums<D> o;
  clear<D>(o);
  RunningSoftmax softmax;
  walk_keys<P>(params, tile, find_walk<P>(keys_of(p, tile, tile.first, count), split, params.splits), hk, base, o, softmax);
  device::cp_async_wait<0>();
  const int lane = threadIdx.x % 32;
  const auto sums_of = [&](int warp) { return reinterpret_cast<float*>(shared + P::Queries::kBytes + warp * P::kWarpBytes); };
  float* mine = sums_of(threadIdx.x / 32);
  __syncwarp();
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = lane / 4 + 8 * i;
    const float l = quad_sum(softmax.l[i]);
#pragma unroll
    for (int j = 0; j < D / 8; ++j) *reinterpret_cast<float2*>(mine + row * D + 8 * j + 2 * (lane % 4)) = {o[j][2 * i], o[j][2 * i + 1]};
    if (lane % 4 == 0) reinterpret_cast<float2*>(mine + kRows * D)[row] = {softmax.m[i] * p.scale * kLog2E, l};
  }
  __syncthreads();
  for (int at = threadIdx.x; at < rows * D; at += kThreads) {
    const int row = at / D, column = at % D;
    const auto part = [&](int warp) { return reinterpret_cast<const float2*>(sums_of(warp) + kRows * D)[row]; };
    const float2 all = joined(kWarps, part);
    float sum = 0;
    for (int warp = 0; warp < kWarps; ++warp) sum += weight_of(part(warp), all.x) * sums_of(warp)[at];
    const int64_t to = (token + row / group) * p.H + hk * group + row % group, part_row = int64_t{split} * p.Nq * p.H + to;
    if (params.splits == 1) {
      static_cast<bf16*>(p.o)[to * D + column] = __float2bfloat16_rn(sum / all.y);
      if (column == 0) p.lse[to] = all.x / kLog2E + logf(all.y);
    } else {
      params.o[part_row * D + column] = sum;
      if (column == 0) params.sum[part_row] = all;
    }
  }
}

// A block joins the splits of one query and head, in their order.
__global__ void __launch_bounds__(256) join_kernel(Params params) {
  device::begin_overlapping();
  const Problem& p = params.problem;
  const int64_t row = blockIdx.x, rows = p.Nq * p.H;
  const auto part = [&](int split) { return params.sum[split * rows + row]; };
  const float2 all = joined(params.splits, part);
  float sum = 0;
  for (int split = 0; split < params.splits; ++split) sum += weight_of(part(split), all.x) * params.o[(split * rows + row) * p.D + threadIdx.x];
  static_cast<bf16*>(p.o)[row * p.D + threadIdx.x] = __float2bfloat16_rn(sum / all.y);
  if (threadIdx.x == 0) p.lse[row] = all.x / kLog2E + logf(all.y);
}

template <int D>
void launch_decode(Context& ctx, const Problem& problem, int64_t max_keys) {
  using P = Plan<D>;
  Params params = {.problem = problem, .queries = decode_queries(problem)};
  const int64_t blocks = num_tiles(problem.Nq, problem.S, params.queries) * problem.HK;
  const int64_t at_once = P::kBlocksPerMultiprocessor * cuda::facts(ctx.device().index).num_multiprocessors;
  constexpr int64_t kLeast = 4 * kWarps * P::kKeys;  // keys worth a block and its share of joining
  const int64_t most = (max_keys + kLeast - 1) / kLeast;
  params.splits = static_cast<int>(std::clamp<int64_t>(at_once / std::max<int64_t>(1, blocks), 1, std::clamp<int64_t>(most, 1, 256)));
  Tensor o, sum;
  if (params.splits > 1) {
    o = Tensor::empty(ctx, {params.splits, problem.Nq, problem.H, D}, DType::f32);
    sum = Tensor::empty(ctx, {params.splits, problem.Nq, problem.H, 2}, DType::f32);
    params.o = o.data<float>(), params.sum = reinterpret_cast<float2*>(sum.raw());
  }
  const cuda::LaunchConfig config = {
      .grid = static_cast<unsigned>(blocks * params.splits), .block = kThreads, .shared_bytes = P::kSharedBytes, .overlaps = true};
  cuda::launch(ctx.stream(), "attention_decode", &decode_kernel<P>, config, params);
  const cuda::LaunchConfig join = {.grid = static_cast<unsigned>(problem.Nq * problem.H), .block = static_cast<unsigned>(D), .overlaps = true};
  if (params.splits > 1) cuda::launch(ctx.stream(), "attention_decode_join", &join_kernel, join, params);
}

}  // namespace

void decode_forward(Context& ctx, const Problem& problem, int64_t max_keys) {
  if (problem.D == 64) launch_decode<64>(ctx, problem, max_keys);
  else if (problem.D == 128) launch_decode<128>(ctx, problem, max_keys);
  else launch_decode<256>(ctx, problem, max_keys);
}

}  // namespace braid::attention
