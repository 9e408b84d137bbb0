#include "cuda/device/scalar.h"
#include "cuda/kernels/adamw/adamw.h"
#include "cuda/runtime/check.h"

namespace braid::cuda {
namespace {

constexpr int kThreads = 256, kTotalThreads = 1024;

/// One row of the table of slots: addresses and two flags, eight bytes each.
struct Slot {
  float* value;
  float* grad;
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
  const AdamWScalars* decided;  // on the device, instead of `by`; or null. Gradients are cleared then
};

// The equations of train/optimizer.h for `width` neighbours.
template <int width>
__device__ inline void update(const AdamWScalars& by, const Slot& slot, int64_t at, bool clear) {
  const float zeros[width] = {};
  if (by.skip) {
    if (clear) device::store(slot.grad + at, zeros);
    return;
  }
  float value[width], g[width], m[width], v[width];
  device::load(slot.value + at, value);
  device::load(slot.grad + at, g);
  device::load(slot.m + at, m);
  device::load(slot.v + at, v);
  const float keep = slot.flags & kAdamWDecays ? by.keep : 1.0f;
#pragma unroll
  for (int j = 0; j < width; ++j) {
    g[j] *= by.gradient_scale;
    m[j] = by.beta1 * m[j] + by.rest1 * g[j];
    v[j] = by.beta2 * v[j] + by.rest2 * g[j] * g[j];
    value[j] = keep * value[j] - by.rate * m[j] / (sqrtf(v[j]) * by.v_scale + by.eps);
  }
  device::store(slot.value + at, value);
  device::store(slot.m + at, m);
  device::store(slot.v + at, v);
  if (slot.compute) device::store(slot.compute + at, value);
  if (clear) device::store(slot.grad + at, zeros);
}

__global__ void __launch_bounds__(kThreads) adamw_kernel(StepParams p) {
  const AdamWScalars by = p.decided ? *p.decided : p.by;
  const bool clear = p.decided != nullptr;
  const Piece piece = p.pieces[blockIdx.x];
  const Slot slot = p.slots[piece.slot];
  const int64_t packs = slot.flags & kAdamWAligned ? (piece.end - piece.begin) / 4 : 0;
  for (int64_t i = threadIdx.x; i < packs; i += kThreads) update<4>(by, slot, piece.begin + 4 * i, clear);
  for (int64_t at = piece.begin + 4 * packs + threadIdx.x; at < piece.end; at += kThreads) update<1>(by, slot, at, clear);
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

struct DecideParams {
  AdamWGuard by;
  const double* squared_norm;
  AdamWScalars* scalars;
};

// Trainer::acceptable and its running mean, AdamW::step's scalars: the host's code once more.
__global__ void decide_kernel(DecideParams p) {
  const AdamWGuard& by = p.by;
  double &mean_loss = by.guard[0], &num_in_mean = by.guard[1], &num_updates = by.guard[2];
  const double loss = *by.loss, norm = sqrt(*p.squared_norm);
  const bool watching = by.spike_margin > 0 && num_in_mean >= by.first_spike;
  const bool good = isfinite(loss) && isfinite(norm) && !(watching && loss > mean_loss + by.spike_margin);
  by.guard[3] = loss;
  by.guard[4] = norm;
  by.guard[5] = good ? 0 : 1;
  p.scalars->skip = !good;
  if (!good) return;
  num_in_mean = fmin(num_in_mean + 1, by.memory);
  mean_loss += (loss - mean_loss) / num_in_mean;
  num_updates += 1;
  const double correction1 = 1 - pow(by.beta1, num_updates), correction2 = 1 - pow(by.beta2, num_updates);
  const double scale = by.max_norm > 0 && norm > by.max_norm ? by.max_norm / norm : 1;
  const auto single = [](double x) { return static_cast<float>(x); };
  *p.scalars = {.gradient_scale = single(scale),
                .beta1 = single(by.beta1),
                .rest1 = single(1 - by.beta1),
                .beta2 = single(by.beta2),
                .rest2 = single(1 - by.beta2),
                .keep = single(1 - by.learning_rate * by.weight_decay),
                .rate = single(by.learning_rate / correction1),
                .v_scale = single(1 / sqrt(correction2)),
                .eps = single(by.eps),
                .skip = 0};
}

void launch_step(Context& ctx, const AdamWTables& tables, const AdamWScalars& scalars, const AdamWScalars* decided) {
  const StepParams params{reinterpret_cast<const Slot*>(tables.slots.raw()), reinterpret_cast<const Piece*>(tables.pieces.raw()), scalars, decided};
  launch(ctx.stream(), "adamw_step", &adamw_kernel, {.grid = static_cast<unsigned>(tables.pieces.size(0)), .block = kThreads}, params);
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

void adamw_step(Context& ctx, const AdamWTables& tables, const AdamWScalars& scalars) { launch_step(ctx, tables, scalars, nullptr); }

void guarded_adamw_step(Context& ctx, const AdamWTables& tables, const AdamWGuard& guard) {
  const Tensor norm = squared_norm(ctx, tables), scalars = Tensor::empty(ctx, {sizeof(AdamWScalars)}, DType::u8);
  auto* decided = reinterpret_cast<AdamWScalars*>(scalars.raw());
  launch(ctx.stream(), "adamw_decide", &decide_kernel, {.grid = 1, .block = 1}, DecideParams{guard, norm.data<double>(), decided});
  launch_step(ctx, tables, {}, decided);
}

}  // namespace braid::cuda
