// AdamW and the gradient norm over a list of pieces of all parameters: a block per piece, one launch. The equations: train/optimizer.h.
#pragma once
#include "core/context.h"

namespace braid::cuda {

/// Flags of a parameter.
inline constexpr int64_t kAdamWDecays = 1;   // weight decay applies to it
inline constexpr int64_t kAdamWAligned = 2;  // all its addresses are multiples of 16

/// What stays on the GPU between steps, i64:
///   slots  [parameters, 6]: addresses of value, gradient, m, v (f32), of the bf16 copy (or 0), flags
///   pieces [pieces, 3]: parameter, first element, past the last
struct AdamWTables {
  Tensor slots, pieces;
};

/// One step's numbers; rest = 1 − β.
struct AdamWScalars {
  float gradient_scale, beta1, rest1, beta2, rest2, keep, rate, v_scale, eps;
  int32_t skip = 0;  // 1: nothing is changed
};

/// One step of every parameter, in place.
void adamw_step(Context& ctx, const AdamWTables& tables, const AdamWScalars& scalars);

/// A step that the GPU itself decides on (train/optimizer.h, StepGuard), so that the host need not wait for the gradient. It leaves every
/// gradient zero, whatever it decides.
struct AdamWGuard {
  double* guard;       // [kSize] as in StepGuard, read and written
  const double* loss;  // []
  double learning_rate, beta1, beta2, eps, weight_decay, max_norm, spike_margin, memory, first_spike;
};
/// The step, or none where loss or gradient are not finite or the loss is a spike; `guard` says which.
void guarded_adamw_step(Context& ctx, const AdamWTables& tables, const AdamWGuard& guard);
/// Σ gradient² over all pieces, f64 [], summed in a fixed order. There must be a piece.
Tensor squared_norm(Context& ctx, const AdamWTables& tables);

}  // namespace braid::cuda
