// Inputs of a case, and the case made of an operator and its inputs.
#pragma once
#include <algorithm>

#include "autograd/apply.h"
#include "core/random.h"
#include "cuda/runtime/runtime.h"
#include "train/cli/bench_gpu/cases.h"

namespace braid::cli {

inline constexpr int64_t kBenchTokens = 32768;

/// Random tensors on a GPU, made there from one block of random numbers repeated: a gigabyte of inputs costs no time on the host.
class Values {
 public:
  explicit Values(Context& ctx) : ctx_(ctx), random_(11) {}

  Tensor uniform(const Shape& shape, double low = -1, double high = 1, DType dtype = DType::bf16) {
    constexpr int64_t kBlock = (1 << 18) + 8;  // no power of two: neighbouring tokens differ
    std::vector<float> values(std::min(kBlock, shape.numel()));
    for (float& value : values) value = static_cast<float>(random_.uniform(low, high));
    const Tensor block = converted(ctx_, from_vector<float>(ctx_, values, {static_cast<int64_t>(values.size())}), dtype);
    const Tensor all = Tensor::empty(ctx_, {shape.numel()}, dtype);
    for (int64_t begin = 0; begin < all.numel(); begin += block.numel()) {
      const int64_t count = std::min(block.numel(), all.numel() - begin);
      copy_into(ctx_, all.slice(0, begin, begin + count), block.slice(0, 0, count));
    }
    return all.view(shape);
  }
  Tensor f32(const Shape& shape, double low = -1, double high = 1) { return uniform(shape, low, high, DType::f32); }
  Tensor indices(int64_t count, int64_t bound) {
    std::vector<int64_t> values(count);
    for (int64_t& value : values) value = static_cast<int64_t>(random_.below(bound));
    return from_vector<int64_t>(ctx_, values, {count});
  }

 private:
  Context& ctx_;
  Random random_;
};

template <class Record>
int64_t bytes_of(const Record& record) {
  int64_t sum = 0;
  for (const Tensor* tensor : tensors_of(record))
    if (tensor->defined()) sum += tensor->nbytes();
  return sum;
}

/// Copies of `bytes` of inputs, so that two other copies or three times the L2 cache come between two uses of one.
inline int num_copies(Context& ctx, int64_t bytes) {
  const int64_t l2 = cuda::facts(ctx.device().index).l2_bytes;
  return static_cast<int>(std::clamp<int64_t>(3 * l2 / std::max<int64_t>(bytes, 1) + 1, 2, 64));
}

/// An operator's inputs, the gradient of its first output, and where gradients that an operator adds up in place go.
template <Differentiable Op>
struct BenchInputs {
  typename Op::Inputs in;
  Tensor seed, in_place;
};

template <Differentiable Op>
BenchInputs<Op> copy_of(Context& ctx, const BenchInputs<Op>& from) {
  BenchInputs<Op> result = from;
  for (Tensor* tensor : tensors_of(result.in))
    if (tensor->defined()) *tensor = copied(ctx, *tensor);
  result.seed = copied(ctx, from.seed);
  return result;
}

template <Differentiable Op>
void run_both(Context& ctx, const BenchInputs<Op>& inputs, const typename Op::Attrs& attrs) {
  Tape tape;
  WithTape recording(ctx, &tape);
  typename Op::Inputs leaves = inputs.in;
  const auto tensors = tensors_of(leaves);
  for (int i = 0; i < static_cast<int>(tensors.size()); ++i)
    if (tensors[i]->defined() && is_floating(tensors[i]->dtype()))
      *tensors[i] = tape.leaf(*tensors[i], i == accumulated_input<Op>() ? inputs.in_place : Tensor());
  const typename Op::Outputs out = apply<Op>(ctx, leaves, attrs);
  tape.backward(ctx, *tensors_of(out)[0], inputs.seed);
}

template <Differentiable Op>
GpuCost counted_cost(const typename Op::Inputs& in, const typename Op::Outputs& out, const Tensor& in_place, double forward_flops,
                     double backward_flops) {
  GpuCost cost;
  cost.forward_bytes = static_cast<double>(bytes_of(in) + bytes_of(out));
  cost.backward_bytes = static_cast<double>(bytes_of(in) + tensors_of(out)[0]->nbytes());
  const auto tensors = tensors_of(in);
  for (int i = 0; i < static_cast<int>(tensors.size()); ++i)  // a gradient added in place is read and written
    if (tensors[i]->defined() && is_floating(tensors[i]->dtype()))
      cost.backward_bytes += static_cast<double>(i == accumulated_input<Op>() ? 2 * in_place.nbytes() : tensors[i]->nbytes());
  cost.forward_flops = forward_flops, cost.backward_flops = backward_flops;
  return cost;
}

/// The case of one operator. `backward_flops` 0: twice the forward's.
template <Differentiable Op>
GpuRun make_run(Context& ctx, const typename Op::Inputs& in, const typename Op::Attrs& attrs, double forward_flops, double backward_flops = 0) {
  BenchInputs<Op> inputs{in, {}, {}};
  const typename Op::Outputs out = Op::allocate(ctx, in, attrs);
  const Tensor& first = *tensors_of(out)[0];
  inputs.seed = Values(ctx).uniform(first.shape(), -1, 1, first.dtype());
  if (accumulated_input<Op>() >= 0) inputs.in_place = Tensor::zeros(ctx, tensors_of(in)[std::max(0, accumulated_input<Op>())]->shape(), DType::f32);
  GpuRun run;
  run.cost = counted_cost<Op>(in, out, inputs.in_place, forward_flops, backward_flops > 0 ? backward_flops : 2 * forward_flops);
  run.output_bytes = bytes_of(out);
  const auto tensors = tensors_of(in);
  for (int i = 0; i < static_cast<int>(tensors.size()); ++i)
    if (tensors[i]->defined() && is_floating(tensors[i]->dtype()) && i != accumulated_input<Op>()) run.gradient_bytes += tensors[i]->nbytes();
  run.copies = num_copies(ctx, bytes_of(in));
  auto copies = std::make_shared<std::vector<BenchInputs<Op>>>();
  copies->push_back(inputs);
  while (static_cast<int>(copies->size()) < run.copies) copies->push_back(copy_of<Op>(ctx, inputs));
  run.forward = [copies, attrs](Context& c, int copy) { apply<Op>(c, (*copies)[copy].in, attrs); };
  run.forward_and_backward = [copies, attrs](Context& c, int copy) { run_both<Op>(c, (*copies)[copy], attrs); };
  return run;
}

}  // namespace braid::cli
