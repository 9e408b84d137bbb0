// Running an operator: checks, dispatch to a device, recording on the tape.
#pragma once
#include "autograd/operator.h"
#include "autograd/tape.h"
#include "core/owner.h"
#include "core/profile.h"

namespace braid {
namespace detail {

template <class Record>
bool holds_bf16(const Record& record) {
  for (const Tensor* tensor : tensors_of(record))
    if (tensor->defined() && tensor->dtype() == DType::bf16) return true;
  return false;
}

/// The record with bfloat16 members in float32. `like` (outputs) only gets memory, no values.
template <class Record>
Record promoted(Context& ctx, const Record& record, bool values) {
  Record result = record;
  for (Tensor* tensor : tensors_of(result)) {
    if (!tensor->defined() || tensor->dtype() != DType::bf16) continue;
    *tensor = values ? converted(ctx, *tensor, DType::f32) : Tensor::empty(ctx, tensor->shape(), DType::f32);
  }
  return result;
}

/// bfloat16 on the CPU: stored in 16 bits, computed in float32 (the operators' CPU code knows f32 and f64 only).
template <class Op>
typename Op::Saved forward_promoted(Context& ctx, const typename Op::Inputs& in, const typename Op::Attrs& attrs, typename Op::Outputs& out) {
  typename Op::Outputs wide = promoted(ctx, out, false);
  typename Op::Saved saved = Op::forward_cpu(ctx, promoted(ctx, in, true), attrs, wide);
  const auto from = tensors_of(wide), to = tensors_of(out);
  for (size_t i = 0; i < to.size(); ++i)
    if (to[i]->defined() && to[i]->dtype() == DType::bf16) convert_into(ctx, *to[i], *from[i], false);
  return saved;
}

/// The record's tensors in host memory (values copied unless `values` is false), and back into device tensors made before.
template <class Record>
Record on_host(Context& ctx, Context& host, const Record& record, bool values) {
  Record result = record;
  for (Tensor* tensor : tensors_of(result)) {
    if (!tensor->defined()) continue;
    const Tensor from = *tensor;
    *tensor = Tensor::empty(host, from.shape(), from.dtype());
    if (values) copy_into(ctx, *tensor, from);
  }
  if (values) ctx.synchronize();
  return result;
}

template <class Record>
void copy_back(Context& ctx, const Record& from, const Record& to) {
  const auto sources = tensors_of(from), targets = tensors_of(to);
  for (size_t i = 0; i < targets.size(); ++i)
    if (targets[i]->defined()) copy_into(ctx, *targets[i], *sources[i]);
  ctx.synchronize();
}

/// A GPU context's operator without kernels of its own, computed on the host; what it saves stays there.
template <class Op>
typename Op::Saved forward_on_host(Context& ctx, const typename Op::Inputs& in, const typename Op::Attrs& attrs, typename Op::Outputs& out) {
  Context host(Stream{}, ctx.pool());
  typename Op::Outputs host_out = on_host(ctx, host, out, false);
  const typename Op::Inputs host_in = on_host(ctx, host, in, true);
  typename Op::Saved saved = holds_bf16(in) ? forward_promoted<Op>(host, host_in, attrs, host_out) : Op::forward_cpu(host, host_in, attrs, host_out);
  copy_back(ctx, host_out, out);
  return saved;
}

template <class Op>
void backward_on_host(Context& ctx, const typename Op::Saved& saved, const typename Op::Attrs& attrs, const typename Op::Outputs& d_out,
                      typename Op::Inputs& d_in) {
  Context host(Stream{}, ctx.pool());
  const typename Op::Outputs host_d_out = on_host(ctx, host, d_out, true);
  typename Op::Inputs host_d_in = on_host(ctx, host, d_in, accumulated_input<Op>() >= 0);
  Op::backward_cpu(host, saved, attrs, host_d_out, host_d_in);
  copy_back(ctx, host_d_in, d_in);
}

template <class Op>
class OpNode final : public Node {
 public:
  using Inputs = typename Op::Inputs;
  using Outputs = typename Op::Outputs;

  std::string_view name() const override { return Op::name; }

  void visit_saved(FunctionRef<void(const Tensor&)> visit) const override {
    for (const Tensor* tensor : tensors_of(saved)) visit(*tensor);
  }

  void backward(Context& ctx, Tape& tape) override {
    Outputs d_out;
    bool any = false;
    const auto d_outs = tensors_of(d_out);
    for (size_t i = 0; i < d_outs.size(); ++i) {
      *d_outs[i] = tape.take_grad(output_slots[i]);
      any |= d_outs[i]->defined();
    }
    if (!any) return;
    const WithOperator running(Op::name, true);
    ScopedTime timed(ctx.profile ? &ctx.profile->entry(Op::name).backward_ms : nullptr);
    if (is_promoted) d_out = promoted(ctx, d_out, true);
    Inputs d_in;
    const auto d_ins = tensors_of(d_in);
    for (size_t i = 0; i < d_ins.size(); ++i)
      if (input_slots[i] >= 0) *d_ins[i] = gradient_target(ctx, tape, static_cast<int>(i));
    if (ctx.on_cpu()) {
      Op::backward_cpu(ctx, saved, attrs, d_out, d_in);
    } else if constexpr (kWithCuda && HasCuda<Op>) {
      Op::backward_cuda(ctx, saved, attrs, d_out, d_in);
    } else {
      backward_on_host<Op>(ctx, saved, attrs, d_out, d_in);
    }
    d_out = {};
    for (size_t i = 0; i < d_ins.size(); ++i)
      if (!in_place(tape, static_cast<int>(i))) tape.accumulate(ctx, input_slots[i], *d_ins[i]);
  }

  typename Op::Saved saved;
  typename Op::Attrs attrs;
  std::array<int64_t, kNumTensors<Inputs>> input_slots;
  std::array<std::pair<Shape, DType>, kNumTensors<Inputs>> input_types;
  std::array<int64_t, kNumTensors<Outputs>> output_slots;
  bool is_promoted = false;

 private:
  bool in_place(const Tape& tape, int i) const { return i == accumulated_input<Op>() && tape.leaf_buffer(input_slots[i]).defined(); }

  Tensor gradient_target(Context& ctx, const Tape& tape, int i) const {
    const auto& [shape, dtype] = input_types[i];
    if (in_place(tape, i)) return tape.leaf_buffer(input_slots[i]).view(shape);
    if (i == accumulated_input<Op>()) return Tensor::zeros(ctx, shape, accumulator(dtype));
    return Tensor::empty(ctx, shape, is_promoted && dtype == DType::bf16 ? DType::f32 : dtype);
  }
};

}  // namespace detail

/// Runs the operator on the context's device and, when a tape records and an input is tracked, puts it on the tape. Throws Error
/// when an input is on another device or Op::allocate refuses.
template <Differentiable Op>
typename Op::Outputs apply(Context& ctx, typename Op::Inputs in, const typename Op::Attrs& attrs = {}) {
  const WithOperator running(Op::name, ctx.tape != nullptr);
  auto node = std::make_unique<detail::OpNode<Op>>();
  bool tracked = false;
  const auto inputs = tensors_of(in);
  for (size_t i = 0; i < inputs.size(); ++i) {
    Tensor& input = *inputs[i];
    node->input_slots[i] = ctx.tape ? ctx.tape->slot_of(input) : -1;
    tracked |= node->input_slots[i] >= 0;
    if (!input.defined()) continue;
    BRAID_CHECK(input.device() == ctx.device(), Op::name, ": ", Op::Inputs::names[i], " must be on ", ctx.device(), ", got ", input.device());
    input = contiguous(ctx, input).detached();
    node->input_types[i] = {input.shape(), input.dtype()};
  }
  typename Op::Outputs out = Op::allocate(ctx, in, attrs);
  constexpr bool kKernels = kWithCuda && HasCuda<Op>;
  node->is_promoted = (ctx.on_cpu() || !kKernels) && detail::holds_bf16(in);
  if (ctx.profile) ++ctx.profile->entry(Op::name).num_calls;
  ScopedTime timed(ctx.profile ? &ctx.profile->entry(Op::name).forward_ms : nullptr);
  if (ctx.on_cpu()) {
    node->saved = node->is_promoted ? detail::forward_promoted<Op>(ctx, in, attrs, out) : Op::forward_cpu(ctx, in, attrs, out);
  } else if constexpr (kKernels) {
    node->saved = Op::forward_cuda(ctx, in, attrs, out);
  } else {
    node->saved = detail::forward_on_host<Op>(ctx, in, attrs, out);
  }
  if (!tracked) return out;
  node->attrs = attrs;
  const auto outputs = tensors_of(out);
  for (size_t i = 0; i < outputs.size(); ++i) {
    const bool differentiable = outputs[i]->defined() && is_floating(outputs[i]->dtype());
    if (differentiable) *outputs[i] = ctx.tape->track(*outputs[i]);
    node->output_slots[i] = differentiable ? ctx.tape->slot_of(*outputs[i]) : -1;
  }
  ctx.tape->push(std::move(node));
  return out;
}

}  // namespace braid
