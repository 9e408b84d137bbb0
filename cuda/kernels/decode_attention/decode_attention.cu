#include <cmath>

#include "cuda/device/scalar.h"
#include "cuda/kernels/operands.h"
#include "cuda/runtime/check.h"
#include "ops/decode_attention.h"

namespace braid {
namespace {

constexpr int kSplits = 32, kWarps = 4, kThreads = 32 * kWarps, kMaxD = 256, kPerLane = kMaxD / 32;

struct DecodeParams {
  const void* q;            // [H, D]
  const void *k, *v;        // [HK, D], the new token's
  void *ring_k, *ring_v;    // [capacity, HK, D]
  void* o;                  // [H, D]
  float* partial;           // [H, kSplits, D + 2]: Σ e^(s − m) v, m, Σ e^(s − m)
  const int64_t* position;  // []
  int64_t H, HK, D, capacity, window;
  float scale;
};

struct Span {
  int64_t position, first;  // keys of positions [first, position]
  __device__ explicit Span(const DecodeParams& p) : position(*p.position) {
    const int64_t reach = p.window > 0 ? p.window : p.capacity;
    first = position + 1 > reach ? position + 1 - reach : 0;
  }
};

template <class T>
__global__ void append_kernel(DecodeParams p) {
  const int64_t row = *p.position % p.capacity * p.HK * p.D;
  for (int64_t i = threadIdx.x; i < p.HK * p.D; i += blockDim.x) {
    static_cast<T*>(p.ring_k)[row + i] = static_cast<const T*>(p.k)[i];
    static_cast<T*>(p.ring_v)[row + i] = static_cast<const T*>(p.v)[i];
  }
}

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
  __shared__ float shared_sum[kWarps][kMaxD], shared_highest[kWarps], shared_total[kWarps];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t head = blockIdx.x, split = blockIdx.y, kv_head = head / (p.H / p.HK);
  const Span span(p);
  const int64_t count = span.position + 1 - span.first, part = (count + kSplits - 1) / kSplits;
  const int64_t begin = span.first + split * part, end = min(begin + part, span.position + 1);
  float q[kPerLane];
#pragma unroll
  for (int j = 0; j < kPerLane; ++j)
    q[j] = lane + 32 * j < p.D ? p.scale * device::to_float(static_cast<const T*>(p.q)[head * p.D + lane + 32 * j]) : 0;
  Weighted own;
  for (int64_t n = begin + warp; n < end; n += kWarps) {
    const int64_t row = (n % p.capacity * p.HK + kv_head) * p.D;
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

template <class T>
void run(Context& ctx, const DecodeParams& params) {
  const auto heads = static_cast<unsigned>(params.H);
  cuda::launch(ctx.stream(), "decode_attention_append", &append_kernel<T>, {.grid = 1, .block = 512}, params);
  cuda::launch(ctx.stream(), "decode_attention", &attend_kernel<T>, {.grid = dim3(heads, kSplits), .block = kThreads}, params);
  cuda::launch(ctx.stream(), "decode_attention_join", &join_kernel<T>, {.grid = heads, .block = kMaxD}, params);
}

struct AdvanceParams {
  int64_t* position;  // [count]
  int64_t count, by;
};

__global__ void advance_kernel(AdvanceParams p) {
  for (int64_t i = threadIdx.x; i < p.count; i += blockDim.x) p.position[i] += p.by;
}

}  // namespace

Tensor decode_attention_cuda(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& ring_k, const Tensor& ring_v,
                             const Tensor& position, int64_t window) {
  constexpr std::string_view name = "decode_attention";
  cuda::require_kernel_dtype(name, q.dtype());
  const int64_t H = q.size(1), HK = k.size(1), D = q.size(2), capacity = ring_k.size(0);
  BRAID_CHECK(q.size(0) == 1 && D <= kMaxD && H % HK == 0, name, ": q must be [1, H, D] with D at most ", kMaxD, ", got ", q.shape());
  BRAID_CHECK(ring_k.dtype() == q.dtype() && ring_k.shape() == Shape({capacity, HK, D}) && ring_v.shape() == ring_k.shape(), name,
              ": the rings must be [capacity, ", HK, ", ", D, "] of ", q.dtype(), ", got ", ring_k.dtype(), " ", ring_k.shape());
  BRAID_CHECK(window <= capacity, name, ": the window must be at most the capacity ", capacity, ", got ", window);
  const Tensor o = Tensor::empty(ctx, q.shape(), q.dtype()), partial = Tensor::empty(ctx, {H, kSplits, D + 2}, DType::f32);
  const DecodeParams params{q.raw(),
                            k.raw(),
                            v.raw(),
                            ring_k.raw(),
                            ring_v.raw(),
                            o.raw(),
                            partial.data<float>(),
                            position.data<int64_t>(),
                            H,
                            HK,
                            D,
                            capacity,
                            window,
                            1.0f / std::sqrt(static_cast<float>(D))};
  if (q.dtype() == DType::bf16) run<device::bf16>(ctx, params);
  else run<float>(ctx, params);
  return o;
}

void advance_positions_cuda(Context& ctx, const Tensor& position, int64_t count) {
  cuda::launch(ctx.stream(), "advance_positions", &advance_kernel, {.grid = 1, .block = 32},
               AdvanceParams{position.data<int64_t>(), position.numel(), count});
}

}  // namespace braid
