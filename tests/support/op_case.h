// One case of an operator, and one forward and backward of it.
#pragma once
#include <algorithm>
#include <functional>

#include "autograd/apply.h"
#include "tests/support/random_tensors.h"

namespace braid::testing {

template <class Op>
struct OpCase {
  std::string name;  // letters, digits and _ only
  std::function<typename Op::Inputs(Context&, Random&)> inputs;
  typename Op::Attrs attrs = {};
  bool any_shape = false;       // the operator takes any shape, a single number too: the law of refusals asks for no other
  double f32_tolerance = 1e-5;  // on outputs and gradients, against f64
  bool gradcheck = true;        // off for long cases: each element costs two forward passes
};

/// What an operator's inputs are, by name.
struct InputKinds {
  std::vector<std::string_view> accumulator = {};  // f32 even in a bf16 computation
  std::vector<std::string_view> token = {};        // first dimension is N (unless the rank is 1: then shared by all tokens)
  std::vector<std::string_view> state = {};        // first dimension is S
};

inline bool listed(const std::vector<std::string_view>& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

/// Outputs and input gradients of one forward and backward.
template <class Op>
struct OpRun {
  typename Op::Outputs out;
  typename Op::Inputs d_in;
};

/// Output gradients: random, the same for the same shapes.
template <class Op>
typename Op::Outputs output_gradients(Context& ctx, const typename Op::Outputs& out) {
  Random random(99);
  typename Op::Outputs d_out;
  const auto from = tensors_of(out);
  const auto to = tensors_of(d_out);
  for (size_t i = 0; i < from.size(); ++i)
    if (from[i]->defined() && is_floating(from[i]->dtype())) *to[i] = uniform(ctx, random, from[i]->shape());
  return d_out;
}

/// `change` may alter the output gradients (f64, on the host).
template <class Op>
OpRun<Op> run_op(Context& ctx, const typename Op::Inputs& in, const typename Op::Attrs& attrs,
                 const std::function<void(typename Op::Outputs&)>& change = {}) {
  Tape tape;
  WithTape recording(ctx, &tape);
  OpRun<Op> run;
  typename Op::Inputs leaves = in;
  for (Tensor* tensor : tensors_of(leaves))
    if (tensor->defined() && is_floating(tensor->dtype())) *tensor = tape.leaf(*tensor);
  run.out = apply<Op>(ctx, leaves, attrs);
  Context host;
  typename Op::Outputs d_out = output_gradients<Op>(host, run.out);
  if (change) change(d_out);
  std::vector<Tensor> roots, seeds;
  const auto outs = tensors_of(run.out);
  const auto d_outs = tensors_of(d_out);
  for (size_t i = 0; i < outs.size(); ++i) {
    if (!outs[i]->grad_ref().tracked()) continue;
    roots.push_back(*outs[i]);
    seeds.push_back(copied(ctx, converted(host, *d_outs[i], outs[i]->dtype())));
  }
  tape.backward(ctx, roots, seeds);
  const auto d_ins = tensors_of(run.d_in), tracked = tensors_of(leaves);
  for (size_t i = 0; i < d_ins.size(); ++i)
    if (tracked[i]->grad_ref().tracked()) *d_ins[i] = tape.grad(*tracked[i]);
  return run;
}

/// The inputs in another dtype (bf16 leaves `kinds.accumulator` members in f32); integer inputs stay.
template <class Op>
typename Op::Inputs in_dtype(Context& ctx, typename Op::Inputs in, DType dtype, const InputKinds& kinds) {
  const auto members = tensors_of(in);
  for (size_t i = 0; i < members.size(); ++i) {
    if (!members[i]->defined() || !is_floating(members[i]->dtype())) continue;
    const bool wide = dtype == DType::bf16 && listed(kinds.accumulator, Op::Inputs::names[i]);
    *members[i] = converted(ctx, *members[i], wide ? DType::f32 : dtype);
  }
  return in;
}

template <class Op>
typename Op::Inputs case_inputs(Context& ctx, const OpCase<Op>& op_case) {
  Random random(7);
  return op_case.inputs(ctx, random);
}

}  // namespace braid::testing
