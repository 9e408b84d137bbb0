#include "cuda/device/scalar.h"
#include "cuda/kernels/adamw/adamw.h"
#include "cuda/runtime/check.h"

namespace braid::cuda {
namespace {

constexpr int kThreads = 256, kTotalThreads = 1024;

/// One row of the table of slots: addresses and two flags, eight bytes each.
struct Slot {
  float* value;
  const float* grad;
  float *m, *v;
  device::bf16* compute;  // or null
  int64_t flags;
};
struct Piece {
  int64_t slot, begin, end;
};
static_assert(sizeof(Slot) == 6 * sizeof(int64_t) && sizeof(Piece) == 3 * sizeof(int64_t));

struct StepParams {
  const Slot* slots;
  const Piece* pieces;
  AdamWScalars by;
};

// The equations of train/optimizer.h for `width` neighbours.
template <int width>
__device__ inline void update(const StepParams& p, const Slot& slot, int64_t at) {
  float value[width], g[width], m[width], v[width];
  device::load(slot.value + at, value);
  device::load(slot.grad + at, g);
  device::load(slot.m + at, m);
  device::load(slot.v + at, v);
  const float keep = slot.flags & kAdamWDecays ? p.by.keep : 1.0f;
#pragma unroll
  for (int j = 0; j < width; ++j) {
    g[j] *= p.by.gradient_scale;
    m[j] = p.by.beta1 * m[j] + p.by.rest1 * g[j];
    v[j] = p.by.beta2 * v[j] + p.by.rest2 * g[j] * g[j];
    value[j] = keep * value[j] - p.by.rate * m[j] / (sqrtf(v[j]) * p.by.v_scale + p.by.eps);
  }
  device::store(slot.value + at, value);
  device::store(slot.m + at, m);
  device::store(slot.v + at, v);
  if (slot.compute) device::store(slot.compute + at, value);
}

__global__ void __launch_bounds__(kThreads) adamw_kernel(StepParams p) {
  const Piece piece = p.pieces[blockIdx.x];
  const Slot slot = p.slots[piece.slot];
  const int64_t packs = slot.flags & kAdamWAligned ? (piece.end - piece.begin) / 4 : 0;
  for (int64_t i = threadIdx.x; i < packs; i += kThreads) update<4>(p, slot, piece.begin + 4 * i);
  for (int64_t at = piece.begin + 4 * packs + threadIdx.x; at < piece.end; at += kThreads) update<1>(p, slot, at);
}

struct NormParams {
  const Slot* slots;
  const Piece* pieces;
  double* partials;  // [pieces]
  double* total;     // []
  int64_t num_pieces;
};

/// Given to thread 0: the sum over the threads of a block, halved again and again. `sums` holds one number a thread.
__device__ inline double block_total(double x, double* sums) {
  sums[threadIdx.x] = x;
  for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  return sums[0];
}

__global__ void __launch_bounds__(kThreads) squared_norm_pieces(NormParams p) {
  __shared__ double sums[kThreads];
  const Piece piece = p.pieces[blockIdx.x];
  const float* grad = p.slots[piece.slot].grad;
  double sum = 0;
  for (int64_t i = piece.begin + threadIdx.x; i < piece.end; i += kThreads) sum += static_cast<double>(grad[i]) * static_cast<double>(grad[i]);
  sum = block_total(sum, sums);
  if (threadIdx.x == 0) p.partials[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kTotalThreads) squared_norm_total(NormParams p) {
  __shared__ double sums[kTotalThreads];
  double sum = 0;
  for (int64_t i = threadIdx.x; i < p.num_pieces; i += kTotalThreads) sum += p.partials[i];
  sum = block_total(sum, sums);
  if (threadIdx.x == 0) *p.total = sum;
}

}  // namespace

Tensor squared_norm(Context& ctx, const AdamWTables& tables) {
  const int64_t num_pieces = tables.pieces.size(0);
  const Tensor partials = Tensor::empty(ctx, {num_pieces}, DType::f64), total = Tensor::empty(ctx, {}, DType::f64);
  const NormParams params{reinterpret_cast<const Slot*>(tables.slots.raw()), reinterpret_cast<const Piece*>(tables.pieces.raw()),
                          partials.data<double>(), total.data<double>(), num_pieces};
  launch(ctx.stream(), "squared_norm_pieces", &squared_norm_pieces, {.grid = static_cast<unsigned>(num_pieces), .block = kThreads}, params);
  launch(ctx.stream(), "squared_norm_total", &squared_norm_total, {.grid = 1, .block = kTotalThreads}, params);
  return total;
}

void adamw_step(Context& ctx, const AdamWTables& tables, const AdamWScalars& scalars) {
  const StepParams params{reinterpret_cast<const Slot*>(tables.slots.raw()), reinterpret_cast<const Piece*>(tables.pieces.raw()), scalars};
  launch(ctx.stream(), "adamw_step", &adamw_kernel, {.grid = static_cast<unsigned>(tables.pieces.size(0)), .block = kThreads}, params);
}

}  // namespace braid::cuda
