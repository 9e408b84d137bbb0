#include <cmath>

#include "cuda/device/scalar.h"
#include "cuda/kernels/operands.h"
#include "cuda/runtime/check.h"
#include "train/optimizer.h"

namespace braid {
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
constexpr int64_t kDecays = 1, kAligned = 2;
static_assert(sizeof(Slot) == 6 * sizeof(int64_t) && sizeof(AdamW::Piece) == 3 * sizeof(int64_t));

struct StepParams {
  const Slot* slots;
  const AdamW::Piece* pieces;
  float gradient_scale, beta1, rest1, beta2, rest2, keep, rate, v_scale, eps;  // rest: 1 − β
};

// The equations of train/optimizer.h for `width` neighbours.
template <int width>
__device__ inline void update(const StepParams& p, const Slot& slot, int64_t at) {
  float value[width], g[width], m[width], v[width];
  device::load(slot.value + at, value);
  device::load(slot.grad + at, g);
  device::load(slot.m + at, m);
  device::load(slot.v + at, v);
  const float keep = slot.flags & kDecays ? p.keep : 1.0f;
#pragma unroll
  for (int j = 0; j < width; ++j) {
    g[j] *= p.gradient_scale;
    m[j] = p.beta1 * m[j] + p.rest1 * g[j];
    v[j] = p.beta2 * v[j] + p.rest2 * g[j] * g[j];
    value[j] = keep * value[j] - p.rate * m[j] / (sqrtf(v[j]) * p.v_scale + p.eps);
  }
  device::store(slot.value + at, value);
  device::store(slot.m + at, m);
  device::store(slot.v + at, v);
  if (slot.compute) device::store(slot.compute + at, value);
}

__global__ void __launch_bounds__(kThreads) adamw_step(StepParams p) {
  const AdamW::Piece piece = p.pieces[blockIdx.x];
  const Slot slot = p.slots[piece.slot];
  const int64_t packs = slot.flags & kAligned ? (piece.end - piece.begin) / 4 : 0;
  for (int64_t i = threadIdx.x; i < packs; i += kThreads) update<4>(p, slot, piece.begin + 4 * i);
  for (int64_t at = piece.begin + 4 * packs + threadIdx.x; at < piece.end; at += kThreads) update<1>(p, slot, at);
}

struct NormParams {
  const Slot* slots;
  const AdamW::Piece* pieces;
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
  const AdamW::Piece piece = p.pieces[blockIdx.x];
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

int64_t number(const void* pointer) { return static_cast<int64_t>(reinterpret_cast<intptr_t>(pointer)); }

}  // namespace

void AdamW::refresh_device_tables(Context& ctx) const {
  std::vector<int64_t> table;
  for (const OptimizerSlot& slot : slots_) {
    const Parameter& parameter = *slot.parameter;
    const auto aligned = [](const Tensor& tensor) { return cuda::aligned16(tensor); };
    const bool wide = aligned(parameter.value) && aligned(parameter.grad) && aligned(slot.m) && aligned(slot.v) && aligned(parameter.compute);
    table.insert(table.end(), {number(parameter.value.raw()), number(parameter.grad.raw()), number(slot.m.raw()), number(slot.v.raw()),
                               number(cuda::address(parameter.compute)), (parameter.decays() ? kDecays : 0) | (wide ? kAligned : 0)});
  }
  if (!device_pieces_ || device_pieces_.device() != ctx.device()) {
    std::vector<int64_t> pieces;
    for (const Piece& piece : pieces_) pieces.insert(pieces.end(), {piece.slot, piece.begin, piece.end});
    device_pieces_ = from_vector(ctx, pieces, {static_cast<int64_t>(pieces_.size()), 3});
    slot_table_.clear();
  }
  if (table == slot_table_) return;
  device_slots_ = from_vector(ctx, table, {static_cast<int64_t>(slots_.size()), 6});
  slot_table_ = std::move(table);
}

double AdamW::squared_norm_cuda(Context& ctx) const {
  const int64_t num_pieces = static_cast<int64_t>(pieces_.size());
  if (num_pieces == 0) return 0;
  refresh_device_tables(ctx);
  const Tensor partials = Tensor::empty(ctx, {num_pieces}, DType::f64), total = Tensor::empty(ctx, {}, DType::f64);
  const NormParams params{reinterpret_cast<const Slot*>(device_slots_.raw()), reinterpret_cast<const Piece*>(device_pieces_.raw()),
                          partials.data<double>(), total.data<double>(), num_pieces};
  cuda::launch(ctx.stream(), "squared_norm_pieces", &squared_norm_pieces, {.grid = static_cast<unsigned>(num_pieces), .block = kThreads}, params);
  cuda::launch(ctx.stream(), "squared_norm_total", &squared_norm_total, {.grid = 1, .block = kTotalThreads}, params);
  return item(ctx, total);
}

void AdamW::step_cuda(Context& ctx, const AdamWStep& step) const {
  refresh_device_tables(ctx);
  const auto single = [](double x) { return static_cast<float>(x); };
  const StepParams params{.slots = reinterpret_cast<const Slot*>(device_slots_.raw()),
                          .pieces = reinterpret_cast<const Piece*>(device_pieces_.raw()),
                          .gradient_scale = single(step.gradient_scale),
                          .beta1 = single(step.beta1),
                          .rest1 = single(1 - step.beta1),
                          .beta2 = single(step.beta2),
                          .rest2 = single(1 - step.beta2),
                          .keep = single(1 - step.learning_rate * step.weight_decay),
                          .rate = single(step.learning_rate / step.correction1),
                          .v_scale = single(1 / std::sqrt(step.correction2)),
                          .eps = single(step.eps)};
  cuda::launch(ctx.stream(), "adamw_step", &adamw_step, {.grid = static_cast<unsigned>(pieces_.size()), .block = kThreads}, params);
}

}  // namespace braid
