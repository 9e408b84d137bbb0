#include "train/optimizer.h"

#include <algorithm>
#include <cmath>

#include "autograd/operator.h"
#include "core/owner.h"
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
  const WithOwner owner(kOwnerMoments);
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
  if constexpr (kWithCuda)
    if (!ctx.on_cpu() && all_float32()) return std::sqrt(squared_norm_cuda(ctx));
  Context host(Stream{}, ctx.pool());
  std::vector<Tensor> grads;
  for (const OptimizerSlot& slot : slots_) {
    grads.push_back(slot.parameter->grad);
    if (ctx.on_cpu()) continue;
    grads.back() = Tensor::empty(host, slot.m.shape(), slot.m.dtype());
    copy_into(ctx, grads.back(), slot.parameter->grad);
  }
  ctx.synchronize();
  return std::sqrt(squared_norm_cpu(host, grads, pieces_));
}

double AdamW::squared_norm_cpu(Context& ctx, const std::vector<Tensor>& grads, const std::vector<Piece>& pieces) {
  std::vector<double> partial(pieces.size());
  ctx.parallel_for(static_cast<int64_t>(pieces.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Piece& piece = pieces[i];
      const Tensor& grad = grads[piece.slot];
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
  if (ctx.on_cpu()) return step_cpu(ctx, slots_, pieces_, step);
  if constexpr (kWithCuda)
    if (all_float32()) return step_cuda(ctx, step);
  step_on_host(ctx, step);
}

void AdamW::guarded_step(Context& ctx, double learning_rate, const StepLimits& limits, const Tensor& loss, const Tensor& guard) const {
  BRAID_CHECK(decides_on_device(ctx) && !slots_.empty(), "adamw: a guarded step needs float32 parameters on a GPU, got ", slots_.size(), " on ",
              ctx.device());
  for (const OptimizerSlot& slot : slots_)
    BRAID_CHECK(slot.parameter->grad, "adamw: parameter '", slot.parameter->name, "' has no gradient; call zero_grads before backward");
  if constexpr (kWithCuda) guarded_step_cuda(ctx, learning_rate, limits, loss, guard);
}

bool AdamW::all_float32() const {
  return std::all_of(slots_.begin(), slots_.end(), [](const OptimizerSlot& slot) { return slot.m.dtype() == DType::f32; });
}

void AdamW::step_cpu(Context& ctx, const std::vector<OptimizerSlot>& slots, const std::vector<Piece>& pieces, const AdamWStep& step) {
  ctx.parallel_for(static_cast<int64_t>(pieces.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const OptimizerSlot& slot = slots[pieces[i].slot];
      dispatch_real("adamw", slot.m.dtype(), [&]<class T>() { update_piece<T>(slot, pieces[i], step); });
    }
  });
}

void AdamW::step_on_host(Context& ctx, const AdamWStep& step) const {
  Context host(Stream{}, ctx.pool());
  const auto fetched = [&](const Tensor& tensor) {
    if (!tensor) return tensor;
    Tensor local = Tensor::empty(host, tensor.shape(), tensor.dtype());
    copy_into(ctx, local, tensor);
    return local;
  };
  std::vector<Parameter> parameters;
  std::vector<OptimizerSlot> slots;
  parameters.reserve(slots_.size());
  for (const OptimizerSlot& slot : slots_) {
    Parameter& local = parameters.emplace_back(*slot.parameter);
    local.value = fetched(local.value);
    local.grad = fetched(local.grad);
    local.compute = fetched(local.compute);
    slots.push_back({&local, fetched(slot.m), fetched(slot.v)});
  }
  ctx.synchronize();
  step_cpu(host, slots, pieces_, step);
  for (size_t i = 0; i < slots.size(); ++i) {
    copy_into(ctx, slots_[i].parameter->value, slots[i].parameter->value);
    if (slots[i].parameter->compute) copy_into(ctx, slots_[i].parameter->compute, slots[i].parameter->compute);
    copy_into(ctx, slots_[i].m, slots[i].m);
    copy_into(ctx, slots_[i].v, slots[i].v);
  }
  ctx.synchronize();
}

double clip_scale(double norm, double max_norm) { return max_norm > 0 && norm > max_norm ? max_norm / norm : 1; }

}  // namespace braid
