// Checks a hand-written backward against central differences in float64.
#pragma once
#include <string>

#include "autograd/apply.h"

namespace braid {

struct GradcheckOptions {
  double step = 1e-5;         // of the central difference, relative to max(1, |value|)
  double tolerance = 1e-6;    // on |difference| / max(rms of the tensor's gradient, floor)
  int64_t max_elements = 24;  // per input, chosen at random when it has more; besides them one random direction covers all
  uint64_t seed = 1;
};

struct GradcheckResult {
  bool passed = true;
  double worst_error = 0;
  std::string message;  // one line naming operator, input, element, both values of the worst one; empty when passed
};

namespace detail {

/// sum over outputs of <out, weight>: the scalar whose gradient is checked. `weights` are the output gradients.
double weighted_sum(Context& ctx, const Tensor& out, const Tensor& weight);
/// Random values in [-1, 1).
Tensor random_like(Context& ctx, const Tensor& tensor, Random& random);
/// One scalar function of one perturbed input, as gradcheck sees it.
struct GradcheckInput {
  std::string_view op, input;
  Tensor value, gradient;  // f64, CPU
};
void check_input(Context& ctx, const GradcheckInput& input, const GradcheckOptions& options, Random& random, FunctionRef<void(double*)> evaluate,
                 GradcheckResult& result);

}  // namespace detail

/// Runs Op forward and backward on f64 CPU inputs (values are perturbed in place and restored) and compares d_<input> for every
/// defined floating input with differences of the loss sum(out ∘ random).
template <Differentiable Op>
GradcheckResult gradcheck(Context& ctx, const typename Op::Inputs& in, const typename Op::Attrs& attrs, const GradcheckOptions& options = {}) {
  Random random(options.seed);
  GradcheckResult result;
  typename Op::Inputs leaves = in;
  Tape tape;
  typename Op::Outputs out;
  {
    WithTape recording(ctx, &tape);
    for (Tensor* tensor : tensors_of(leaves))
      if (tensor->defined() && tensor->dtype() == DType::f64) *tensor = tape.leaf(*tensor);
    out = apply<Op>(ctx, leaves, attrs);
  }
  std::vector<Tensor> roots, weights;
  for (Tensor* tensor : tensors_of(out)) {
    if (!tensor->defined() || !tensor->grad_ref().tracked()) continue;
    roots.push_back(*tensor);
    weights.push_back(detail::random_like(ctx, *tensor, random));
  }
  tape.backward(ctx, roots, weights);
  const auto evaluate = [&](double* sum) {
    WithTape silent(ctx, nullptr);
    typename Op::Outputs moved = apply<Op>(ctx, in, attrs);
    *sum = 0;
    size_t k = 0;
    for (const Tensor* tensor : tensors_of(moved))
      if (tensor->defined() && is_floating(tensor->dtype())) *sum += detail::weighted_sum(ctx, *tensor, weights[k++]);
  };
  const auto values = tensors_of(in), tracked = tensors_of(leaves);
  for (size_t i = 0; i < values.size(); ++i) {
    if (!tracked[i]->defined() || !tracked[i]->grad_ref().tracked()) continue;
    const detail::GradcheckInput input{Op::name, Op::Inputs::names[i], *values[i], tape.grad(*tracked[i])};
    detail::check_input(ctx, input, options, random, evaluate, result);
  }
  return result;
}

}  // namespace braid
