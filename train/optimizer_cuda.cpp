#ifdef BRAID_WITH_CUDA
#include <cmath>

#include "cuda/kernels/adamw/adamw.h"
#include "cuda/kernels/operands.h"
#include "train/optimizer.h"

namespace braid {
namespace {

int64_t number(const void* pointer) { return static_cast<int64_t>(reinterpret_cast<intptr_t>(pointer)); }

}  // namespace

void AdamW::refresh_device_tables(Context& ctx) const {
  std::vector<int64_t> table;
  for (const OptimizerSlot& slot : slots_) {
    const Parameter& parameter = *slot.parameter;
    const auto aligned = [](const Tensor& tensor) { return cuda::aligned16(tensor); };
    const bool wide = aligned(parameter.value) && aligned(parameter.grad) && aligned(slot.m) && aligned(slot.v) && aligned(parameter.compute);
    table.insert(table.end(),
                 {number(parameter.value.raw()), number(parameter.grad.raw()), number(slot.m.raw()), number(slot.v.raw()),
                  number(cuda::address(parameter.compute)), (parameter.decays() ? cuda::kAdamWDecays : 0) | (wide ? cuda::kAdamWAligned : 0)});
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
  if (pieces_.empty()) return 0;
  refresh_device_tables(ctx);
  return item(ctx, cuda::squared_norm(ctx, {device_slots_, device_pieces_}));
}

void AdamW::step_cuda(Context& ctx, const AdamWStep& step) const {
  if (pieces_.empty()) return;
  refresh_device_tables(ctx);
  const auto single = [](double x) { return static_cast<float>(x); };
  cuda::adamw_step(ctx, {device_slots_, device_pieces_},
                   {.gradient_scale = single(step.gradient_scale),
                    .beta1 = single(step.beta1),
                    .rest1 = single(1 - step.beta1),
                    .beta2 = single(step.beta2),
                    .rest2 = single(1 - step.beta2),
                    .keep = single(1 - step.learning_rate * step.weight_decay),
                    .rate = single(step.learning_rate / step.correction1),
                    .v_scale = single(1 / std::sqrt(step.correction2)),
                    .eps = single(step.eps)});
}

void AdamW::guarded_step_cuda(Context& ctx, double learning_rate, const StepLimits& limits, const Tensor& loss, const Tensor& guard) const {
  refresh_device_tables(ctx);
  cuda::guarded_adamw_step(ctx, {device_slots_, device_pieces_},
                           {.guard = guard.data<double>(),
                            .loss = loss.data<double>(),
                            .learning_rate = learning_rate,
                            .beta1 = options_.beta1,
                            .beta2 = options_.beta2,
                            .eps = options_.eps,
                            .weight_decay = options_.weight_decay,
                            .max_norm = limits.max_grad_norm,
                            .spike_margin = limits.spike_margin,
                            .memory = static_cast<double>(StepGuard::kMemory),
                            .first_spike = static_cast<double>(StepGuard::kFirstSpikeStep)});
}

}  // namespace braid
#endif
