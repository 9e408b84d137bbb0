// Recompute (activation checkpointing): a part of the model keeps its inputs only and runs again in backward.
#pragma once
#include <vector>

#include "autograd/tape.h"

namespace braid {

/// A part that can be run again: copyable, gives the same bits for the same inputs, uses parameters as keyed leaves with buffers.
template <class Block>
concept Recomputable = requires(const Block& block, Context& ctx, const std::vector<Tensor>& inputs) {
  { block(ctx, inputs) } -> std::same_as<Tensor>;
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
    const Tensor d_output = outer.take_grad(output_slot);
    if (!d_output) return;
    Tape tape;
    std::vector<Tensor> leaves;
    for (size_t i = 0; i < inputs_.size(); ++i) leaves.push_back(input_slots_[i] >= 0 ? tape.leaf(inputs_[i]) : inputs_[i]);
    Tensor output;
    {
      WithTape recording(ctx, &tape);
      output = block_(ctx, leaves);
    }
    tape.backward(ctx, output, d_output);
    for (size_t i = 0; i < leaves.size(); ++i)
      if (input_slots_[i] >= 0) outer.accumulate(ctx, input_slots_[i], tape.grad(leaves[i]));
  }
  int64_t output_slot = -1;

 private:
  Block block_;
  std::vector<Tensor> inputs_;
  std::vector<int64_t> input_slots_;
};

}  // namespace detail

/// block(ctx, inputs), of which only the inputs are kept for backward; same bits as without. Undefined inputs are passed on.
template <Recomputable Block>
Tensor recompute(Context& ctx, const Block& block, const std::vector<Tensor>& inputs) {
  if (!ctx.tape) return block(ctx, inputs);
  Tape& tape = *ctx.tape;
  std::vector<Tensor> plain;
  std::vector<int64_t> slots;
  for (const Tensor& input : inputs) {
    plain.push_back(input.detached());
    slots.push_back(tape.slot_of(input));
  }
  Tensor output;
  {
    WithTape silent(ctx, nullptr);
    output = block(ctx, plain);
  }
  auto node = std::make_unique<detail::RecomputeNode<Block>>(block, std::move(plain), std::move(slots));
  output = tape.track(output);
  node->output_slot = tape.slot_of(output);
  tape.push(std::move(node));
  return output;
}

}  // namespace braid
