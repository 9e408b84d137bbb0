// AdamW with global-norm clipping.
//
//   g = scale · gradient
//   m = β1 m + (1 − β1) g,          v = β2 v + (1 − β2) g²
//   value = value (1 − lr · decay) − lr · (m / (1 − β1^t)) / (sqrt(v / (1 − β2^t)) + eps)
//
// Decay touches only parameters that decay (Parameter::decays). Everything is done in the parameter's own dtype (float32 masters, or
// float64 in the oracle); t and both bias corrections are double.
//
// Source: Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019.
#pragma once
#include <vector>

#include "autograd/operator.h"
#include "models/module.h"

namespace braid {

struct AdamWOptions {
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0.1;
};

/// One parameter and what the optimizer keeps for it.
struct OptimizerSlot {
  Parameter* parameter = nullptr;
  Tensor m, v;  // like parameter->value
};

/// What every kernel of one AdamW step is given.
struct AdamWStep {
  double learning_rate;
  double beta1, beta2, eps, weight_decay;
  double gradient_scale;
  double correction1, correction2;  // 1 − β^t
};

/// What decides on a step, and what it decided: a GPU keeps it as these numbers, in this order, f64 [kSize].
struct StepGuard {
  static constexpr int64_t kSize = 6;
  static constexpr int64_t kMemory = 50;          // steps of the running mean
  static constexpr int64_t kFirstSpikeStep = 20;  // steps before it is relied on
  double mean_loss = 0, num_in_mean = 0, num_updates = 0;
  double loss = 0, norm = 0, skipped = 0;  // of the last step
};
static_assert(sizeof(StepGuard) == StepGuard::kSize * sizeof(double));

struct StepLimits {
  double max_grad_norm = 0;  // 0: no clipping
  double spike_margin = 0;   // a loss this far above the running mean is a spike; 0: no watch is kept
};

/// All parameters are one list of equal pieces, so a step is one pass over everything, on any number of threads with the same bits;
/// on a GPU one launch walks the same list. Parameters of a GPU that are not float32 are updated on the host.
class AdamW {
 public:
  /// A piece of a parameter: elements [begin, end) of slot `slot`.
  struct Piece {
    int64_t slot, begin, end;
  };
  static constexpr int64_t kPieceSize = 1 << 14;

  /// Makes zeroed moments on the context's device. Every parameter must have a value. Throws Error on options out of range.
  AdamW(Context& ctx, const std::vector<Parameter*>& parameters, const AdamWOptions& options);

  /// Euclidean norm of all gradients together, summed in double in a fixed order. NaN or infinity when a gradient holds one.
  double gradient_norm(Context& ctx) const;
  /// One update from every parameter's `grad`, each multiplied by `gradient_scale` first (clipping). bf16 copies are refreshed.
  void step(Context& ctx, double learning_rate, double gradient_scale = 1);

  /// True when guarded_step can be used: on a GPU, with float32 parameters.
  bool decides_on_device(const Context& ctx) const { return kWithCuda && !ctx.on_cpu() && all_float32(); }
  /// Norm, decision and update, all on the GPU: a step whose loss or norm is not finite, or whose loss is a spike, changes nothing but
  /// `guard`. Gradients are zero afterwards. The host neither waits nor learns what became of it before it reads `guard` (f64 [StepGuard::kSize]).
  void guarded_step(Context& ctx, double learning_rate, const StepLimits& limits, const Tensor& loss, const Tensor& guard) const;

  const AdamWOptions& options() const { return options_; }
  /// Parameters and moments, in the order of parameters.
  const std::vector<OptimizerSlot>& slots() const { return slots_; }
  const std::vector<Piece>& pieces() const { return pieces_; }
  /// Updates made so far: t of the bias corrections.
  int64_t num_updates() const { return num_updates_; }
  void set_num_updates(int64_t count) { num_updates_ = count; }

 private:
  static double squared_norm_cpu(Context& ctx, const std::vector<Tensor>& grads, const std::vector<Piece>& pieces);
  static void step_cpu(Context& ctx, const std::vector<OptimizerSlot>& slots, const std::vector<Piece>& pieces, const AdamWStep& step);
  bool all_float32() const;
  /// With CUDA only (optimizer_cuda.cpp, kernels in cuda/kernels/adamw): a block per piece. The list and the addresses stay on the GPU between calls.
  double squared_norm_cuda(Context& ctx) const;
  void step_cuda(Context& ctx, const AdamWStep& step) const;
  void guarded_step_cuda(Context& ctx, double learning_rate, const StepLimits& limits, const Tensor& loss, const Tensor& guard) const;
  void refresh_device_tables(Context& ctx) const;
  /// A GPU's parameters updated on the host, with copies around it.
  void step_on_host(Context& ctx, const AdamWStep& step) const;

  AdamWOptions options_;
  std::vector<OptimizerSlot> slots_;
  std::vector<Piece> pieces_;
  int64_t num_updates_ = 0;
  mutable std::vector<int64_t> slot_table_;      // what device_slots_ holds
  mutable Tensor device_slots_, device_pieces_;  // i64 [slots, 6], i64 [pieces, 3]
};

/// What gradients of norm `norm` are multiplied by so that their norm is at most `max_norm` (0: no clipping).
double clip_scale(double norm, double max_norm);

}  // namespace braid
