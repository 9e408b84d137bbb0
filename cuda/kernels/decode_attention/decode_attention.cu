#include <cmath>

#include "cuda/device/overlap.h"
#include "cuda/device/scalar.h"
#include "cuda/kernels/attention/fast.h"
#include "cuda/kernels/operands.h"
#include "cuda/runtime/check.h"
#include "ops/decode_attention.h"

namespace braid {
namespace {

constexpr int kSplits = 32, kWarps = 4, kThreads = 32 * kWarps, kMaxD = 256, kPerLane = kMaxD / 32;

struct AppendParams {
  const uint16_t *k, *v;      // [row], the new token's, two bytes at a time
  uint16_t *ring_k, *ring_v;  // [capacity, row]
  const int64_t* position;    // []
  int64_t* bounds;            // [4]: cu_seqlens of the one query, and of the live rows
  int64_t row, capacity;
};

__global__ void append_kernel(AppendParams p) {
  device::begin_overlapping();
  const int64_t position = *p.position, to = position % p.capacity * p.row;
  for (int64_t i = threadIdx.x; i < p.row; i += blockDim.x) p.ring_k[to + i] = p.k[i], p.ring_v[to + i] = p.v[i];
  if (threadIdx.x == 0) p.bounds[0] = 0, p.bounds[1] = 1, p.bounds[2] = 0, p.bounds[3] = min(position + 1, p.capacity);
}

struct DecodeParams {
  const void* q;                // [H, D]
  const void *ring_k, *ring_v;  // [capacity, HK, D]
  void* o;                      // [H, D]
  float* partial;               // [H, kSplits, D + 2]: Σ e^(s − m) v, m, Σ e^(s − m)
  const int64_t* num_live;      // []: rows
  int64_t H, HK, D;
  float scale;
};

/// Softmax-weighted sum of rows, in a form that can be joined: one warp's, its channels lane, lane + 32, …
struct Weighted {
  float sum[kPerLane] = {};
  float highest = -INFINITY, total = 0;
  __device__ void rescale(float to) {
    const float factor = to == -INFINITY ? 1.0f : __expf(highest - to);
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) sum[j] *= factor;
    total *= factor;
    highest = to;
  }
};

// A block has one head and one of kSplits parts of its keys; a warp takes every kWarps-th key of the part.
template <class T>
__global__ void __launch_bounds__(kThreads) attend_kernel(DecodeParams p) {
  device::begin_overlapping();
  __shared__ float shared_sum[kWarps][kMaxD], shared_highest[kWarps], shared_total[kWarps];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t head = blockIdx.x, split = blockIdx.y, kv_head = head / (p.H / p.HK);
  const int64_t count = *p.num_live, part = (count + kSplits - 1) / kSplits, begin = split * part, end = min(begin + part, count);
  float q[kPerLane];
#pragma unroll
  for (int j = 0; j < kPerLane; ++j)
    q[j] = lane + 32 * j < p.D ? p.scale * device::to_float(static_cast<const T*>(p.q)[head * p.D + lane + 32 * j]) : 0;
  Weighted own;
  for (int64_t n = begin + warp; n < end; n += kWarps) {
    const int64_t row = (n * p.HK + kv_head) * p.D;
    float score = 0, v[kPerLane];
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) {
      const bool live = lane + 32 * j < p.D;
      score += live ? q[j] * device::to_float(static_cast<const T*>(p.ring_k)[row + lane + 32 * j]) : 0;
      v[j] = live ? device::to_float(static_cast<const T*>(p.ring_v)[row + lane + 32 * j]) : 0;
    }
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) score += __shfl_xor_sync(0xffffffffu, score, offset);
    if (score > own.highest) own.rescale(score);
    const float weight = __expf(score - own.highest);
    own.total += weight;
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) own.sum[j] += weight * v[j];
  }
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) shared_sum[warp][lane + 32 * j] = own.sum[j];
  if (lane == 0) shared_highest[warp] = own.highest, shared_total[warp] = own.total;
  __syncthreads();
  float highest = -INFINITY, total = 0;
  for (int w = 0; w < kWarps; ++w) highest = fmaxf(highest, shared_highest[w]);
  float* partial = p.partial + (head * kSplits + split) * (p.D + 2);
  for (int64_t d = threadIdx.x; d < p.D; d += kThreads) {
    float sum = 0;
    for (int w = 0; w < kWarps; ++w)
      if (shared_total[w] > 0) sum += __expf(shared_highest[w] - highest) * shared_sum[w][d];
    partial[d] = sum;
  }
  if (threadIdx.x != 0) return;
  for (int w = 0; w < kWarps; ++w)
    if (shared_total[w] > 0) total += __expf(shared_highest[w] - highest) * shared_total[w];
  partial[p.D] = highest;
  partial[p.D + 1] = total;
}

template <class T>
__global__ void __launch_bounds__(kMaxD) join_kernel(DecodeParams p) {
  device::begin_overlapping();
  const int64_t head = blockIdx.x, d = threadIdx.x;
  const float* partial = p.partial + head * kSplits * (p.D + 2);
  float highest = -INFINITY, sum = 0, total = 0;
  for (int s = 0; s < kSplits; ++s) highest = fmaxf(highest, partial[s * (p.D + 2) + p.D]);
  for (int s = 0; s < kSplits; ++s) {
    const float* at = partial + s * (p.D + 2);
    if (at[p.D + 1] <= 0) continue;
    const float weight = __expf(at[p.D] - highest);
    total += weight * at[p.D + 1];
    if (d < p.D) sum += weight * at[d];
  }
  if (d < p.D) static_cast<T*>(p.o)[head * p.D + d] = device::from_float<T>(sum / total);
}

void append(Context& ctx, const Tensor& k, const Tensor& v, const Tensor& ring_k, const Tensor& ring_v, const Tensor& position,
            const Tensor& bounds) {
  const auto words = [](const Tensor& tensor) { return reinterpret_cast<uint16_t*>(tensor.raw()); };
  const AppendParams params{words(k),       words(v),      words(ring_k), words(ring_v), position.data<int64_t>(), bounds.data<int64_t>(),
                            k.nbytes() / 2, ring_k.size(0)};
  cuda::launch(ctx.stream(), "decode_attention_append", &append_kernel, {.grid = 1, .block = 512, .overlaps = true}, params);
}

template <class T>
void attend(Context& ctx, const DecodeParams& params) {
  const auto heads = static_cast<unsigned>(params.H);
  cuda::launch(ctx.stream(), "decode_attention", &attend_kernel<T>, {.grid = dim3(heads, kSplits), .block = kThreads, .overlaps = true}, params);
  cuda::launch(ctx.stream(), "decode_attention_join", &join_kernel<T>, {.grid = heads, .block = kMaxD, .overlaps = true}, params);
}

struct AdvanceParams {
  int64_t* position;  // [count]
  int64_t count, by;
};

__global__ void advance_kernel(AdvanceParams p) {
  device::begin_overlapping();
  for (int64_t i = threadIdx.x; i < p.count; i += blockDim.x) p.position[i] += p.by;
}

}  // namespace

Tensor decode_attention_cuda(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& ring_k, const Tensor& ring_v,
                             const Tensor& position) {
  constexpr std::string_view name = "decode_attention";
  cuda::require_kernel_dtype(name, q.dtype());
  const int64_t H = q.size(1), HK = k.size(1), D = q.size(2), capacity = ring_k.size(0);
  BRAID_CHECK(q.size(0) == 1 && D <= kMaxD && H % HK == 0, name, ": q must be [1, H, D] with D at most ", kMaxD, ", got ", q.shape());
  BRAID_CHECK(ring_k.dtype() == q.dtype() && ring_k.shape() == Shape({capacity, HK, D}) && ring_v.shape() == ring_k.shape(), name,
              ": the rings must be [capacity, ", HK, ", ", D, "] of ", q.dtype(), ", got ", ring_k.dtype(), " ", ring_k.shape());
  const Tensor o = Tensor::empty(ctx, q.shape(), q.dtype()), bounds = Tensor::empty(ctx, {4}, DType::i64);
  append(ctx, k, v, ring_k, ring_v, position, bounds);
  attention::Problem problem = {};
  problem.q = q.raw(), problem.k = ring_k.raw(), problem.v = ring_v.raw(), problem.o = o.raw();
  problem.cu_q = bounds.data<int64_t>(), problem.cu_k = problem.cu_q + 2;
  problem.S = problem.Nq = 1, problem.Nk = capacity, problem.H = H, problem.HK = HK, problem.D = problem.DV = D;
  problem.scale = 1.0f / std::sqrt(static_cast<float>(D)), problem.is_bf16 = q.dtype() == DType::bf16;
  if (attention::path_for(problem, false) != attention::Path::plain && attention::decode_takes(problem, 1)) {
    const Tensor lse = Tensor::empty(ctx, {1, H}, DType::f32);
    problem.lse = lse.data<float>();
    attention::decode_forward(ctx, problem, capacity);
    return o;
  }
  const Tensor partial = Tensor::empty(ctx, {H, kSplits, D + 2}, DType::f32);
  const DecodeParams params{q.raw(), ring_k.raw(), ring_v.raw(), o.raw(), partial.data<float>(), problem.cu_k + 1, H, HK, D, problem.scale};
  if (q.dtype() == DType::bf16) attend<device::bf16>(ctx, params);
  else attend<float>(ctx, params);
  return o;
}

void advance_positions_cuda(Context& ctx, const Tensor& position, int64_t count) {
  cuda::launch(ctx.stream(), "advance_positions", &advance_kernel, {.grid = 1, .block = 32, .overlaps = true},
               AdvanceParams{position.data<int64_t>(), position.numel(), count});
}

}  // namespace braid
