// Recompute (activation checkpointing): a part of the model keeps its inputs only and runs again in backward.
#pragma once
#include <vector>

#include "autograd/tape.h"

namespace braid {

/// A part that can be run again: copyable, gives the same bits for the same inputs, uses parameters as keyed leaves with buffers.
template <class Block>
concept Recomputable = requires(const Block& block, Context& ctx, const std::vector<Tensor>& inputs) {
  { block(ctx, inputs) } -> std::same_as<std::vector<Tensor>>;
};

namespace detail {

template <Recomputable Block>
class RecomputeNode final : public Node {
 public:
  RecomputeNode(Block block, std::vector<Tensor> inputs, std::vector<int64_t> slots)
      : block_(std::move(block)), inputs_(std::move(inputs)), input_slots_(std::move(slots)) {}
  std::string_view name() const override { return "recompute"; }
  void visit_saved(FunctionRef<void(const Tensor&)> visit) const override {
    for (const Tensor& input : inputs_) visit(input);
  }
  void backward(Context& ctx, Tape& outer) override {
    std::vector<Tensor> d_outputs;
    bool any = false;
    for (const int64_t slot : output_slots) any |= d_outputs.emplace_back(outer.take_grad(slot)).defined();
    if (!any) return;
    Tape tape;
    std::vector<Tensor> leaves;
    for (size_t i = 0; i < inputs_.size(); ++i) leaves.push_back(input_slots_[i] >= 0 ? tape.leaf(inputs_[i]) : inputs_[i]);
    std::vector<Tensor> roots, seeds;
    {
      WithTape recording(ctx, &tape);
      const std::vector<Tensor> outputs = block_(ctx, leaves);
      for (size_t i = 0; i < outputs.size(); ++i) {
        if (!d_outputs[i]) continue;
        roots.push_back(outputs[i]);
        seeds.push_back(d_outputs[i]);
      }
    }
    d_outputs.clear();
    tape.backward(ctx, roots, seeds);
    for (size_t i = 0; i < leaves.size(); ++i)
      if (input_slots_[i] >= 0) outer.accumulate(ctx, input_slots_[i], tape.grad(leaves[i]));
  }
  std::vector<int64_t> output_slots;

 private:
  Block block_;
  std::vector<Tensor> inputs_;
  std::vector<int64_t> input_slots_;
};

}  // namespace detail

/// block(ctx, inputs), of which only the inputs are kept for backward; same bits as without. Undefined inputs are passed on.
template <Recomputable Block>
std::vector<Tensor> recompute(Context& ctx, const Block& block, const std::vector<Tensor>& inputs) {
  if (!ctx.tape) return block(ctx, inputs);
  Tape& tape = *ctx.tape;
  std::vector<Tensor> plain;
  std::vector<int64_t> slots;
  for (const Tensor& input : inputs) {
    plain.push_back(input.detached());
    slots.push_back(tape.slot_of(input));
  }
  std::vector<Tensor> outputs;
  {
    WithTape silent(ctx, nullptr);
    outputs = block(ctx, plain);
  }
  auto node = std::make_unique<detail::RecomputeNode<Block>>(block, std::move(plain), std::move(slots));
  for (Tensor& output : outputs) {
    output = tape.track(output);
    node->output_slots.push_back(tape.slot_of(output));
  }
  tape.push(std::move(node));
  return outputs;
}

}  // namespace braid
