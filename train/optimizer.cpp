#include "train/optimizer.h"

#include <cmath>

#include "ops/eigen.h"

namespace braid {
namespace {

void check_options(const AdamWOptions& options) {
  const auto check = [](bool good, const char* what, const char* expected, double given) {
    BRAID_CHECK(good, "adamw: ", what, " must be ", expected, ", got ", given);
  };
  check(options.beta1 >= 0 && options.beta1 < 1, "beta1", "in [0, 1)", options.beta1);
  check(options.beta2 >= 0 && options.beta2 < 1, "beta2", "in [0, 1)", options.beta2);
  check(options.eps > 0, "eps", "positive", options.eps);
  check(options.weight_decay >= 0 && std::isfinite(options.weight_decay), "weight_decay", "at least 0", options.weight_decay);
}

template <class T>
void update_piece(const OptimizerSlot& slot, const AdamW::Piece& piece, const AdamWStep& step) {
  const int64_t count = piece.end - piece.begin;
  const auto part = [&](const Tensor& tensor) { return array(tensor.data<T>() + piece.begin, count); };
  auto value = part(slot.parameter->value), m = part(slot.m), v = part(slot.v);
  const auto g = part(slot.parameter->grad) * static_cast<T>(step.gradient_scale);
  const T keep = static_cast<T>(1 - (slot.parameter->decays() ? step.learning_rate * step.weight_decay : 0));
  const T rate = static_cast<T>(step.learning_rate / step.correction1);
  const T v_scale = static_cast<T>(1 / std::sqrt(step.correction2));
  m = static_cast<T>(step.beta1) * m + static_cast<T>(1 - step.beta1) * g;
  v = static_cast<T>(step.beta2) * v + static_cast<T>(1 - step.beta2) * g.square();
  value = keep * value - rate * m / (v.sqrt() * v_scale + static_cast<T>(step.eps));
  if (!slot.parameter->compute) return;
  bf16* compute = slot.parameter->compute.data<bf16>() + piece.begin;
  for (int64_t i = 0; i < count; ++i) compute[i] = bf16(static_cast<float>(value[i]));
}

}  // namespace

AdamW::AdamW(Context& ctx, const std::vector<Parameter*>& parameters, const AdamWOptions& options) : options_(options) {
  check_options(options);
  for (Parameter* parameter : parameters) {
    BRAID_CHECK(parameter->value && parameter->value.contiguous(), "adamw: parameter '", parameter->name, "' must have a contiguous value");
    const int64_t slot = static_cast<int64_t>(slots_.size());
    const Tensor& value = parameter->value;
    slots_.push_back({parameter, Tensor::zeros(ctx, value.shape(), value.dtype()), Tensor::zeros(ctx, value.shape(), value.dtype())});
    for (int64_t begin = 0; begin < value.numel(); begin += kPieceSize) pieces_.push_back({slot, begin, std::min(value.numel(), begin + kPieceSize)});
  }
}

double AdamW::gradient_norm(Context& ctx) const {
  for (const OptimizerSlot& slot : slots_)
    BRAID_CHECK(slot.parameter->grad && slot.parameter->grad.dtype() == slot.m.dtype(), "adamw: parameter '", slot.parameter->name,
                "' must have a gradient in ", slot.m.dtype());
  if (ctx.on_cpu()) return std::sqrt(squared_norm_cpu(ctx));
  if constexpr (kWithCuda) return std::sqrt(squared_norm_cuda(ctx));
  return 0;
}

double AdamW::squared_norm_cpu(Context& ctx) const {
  std::vector<double> partial(pieces_.size());
  ctx.parallel_for(static_cast<int64_t>(pieces_.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Piece& piece = pieces_[i];
      const Tensor& grad = slots_[piece.slot].parameter->grad;
      dispatch_real("adamw", grad.dtype(), [&]<class T>() {
        partial[i] = array(grad.data<T>() + piece.begin, piece.end - piece.begin).template cast<double>().square().sum();
      });
    }
  });
  double total = 0;
  for (double part : partial) total += part;
  return total;
}

void AdamW::step(Context& ctx, double learning_rate, double gradient_scale) {
  for (const OptimizerSlot& slot : slots_)
    BRAID_CHECK(slot.parameter->grad, "adamw: parameter '", slot.parameter->name, "' has no gradient; call zero_grads before backward");
  const double t = static_cast<double>(++num_updates_);
  const AdamWStep step{.learning_rate = learning_rate,
                       .beta1 = options_.beta1,
                       .beta2 = options_.beta2,
                       .eps = options_.eps,
                       .weight_decay = options_.weight_decay,
                       .gradient_scale = gradient_scale,
                       .correction1 = 1 - std::pow(options_.beta1, t),
                       .correction2 = 1 - std::pow(options_.beta2, t)};
  if (ctx.on_cpu()) return step_cpu(ctx, step);
  if constexpr (kWithCuda) step_cuda(ctx, step);
}

void AdamW::step_cpu(Context& ctx, const AdamWStep& step) const {
  ctx.parallel_for(static_cast<int64_t>(pieces_.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const OptimizerSlot& slot = slots_[pieces_[i].slot];
      dispatch_real("adamw", slot.m.dtype(), [&]<class T>() { update_piece<T>(slot, pieces_[i], step); });
    }
  });
}

double clip_scale(double norm, double max_norm) { return max_norm > 0 && norm > max_norm ? max_norm / norm : 1; }

}  // namespace braid
