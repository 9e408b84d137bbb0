#include "ops/projections.h"

#include "ops/elementwise.h"
#include "ops/linear.h"
#include "ops/short_conv.h"
#include "ops/swiglu.h"

namespace braid {
namespace {

Tensor convolved(Context& ctx, const Tensor& y, const Sequences& seqs, const ProjectionMap& map) {
  const auto activation = map.activation == MapActivation::silu ? ConvActivation::silu : ConvActivation::none;
  auto out = apply<ShortConv>(ctx, {y, map.conv, map.tail ? *map.tail : Tensor{}}, {seqs, activation, map.norm_dim});
  if (map.tail) *map.tail = out.final_state;
  return out.o;
}

Tensor project(Context& ctx, const Tensor& x, const Sequences& seqs, const ProjectionMap& map) {
  const Tensor linear_of_x = linear(ctx, x, map.weight, map.bias), y = map.conv ? convolved(ctx, linear_of_x, seqs, map) : linear_of_x;
  if (map.activation == MapActivation::sigmoid) return apply<Sigmoid>(ctx, {y}).y;
  return map.activation == MapActivation::silu && !map.conv ? apply<Silu>(ctx, {y}).y : y;
}

}  // namespace

std::vector<Tensor> project_each(Context& ctx, const Tensor& x, const Sequences& seqs, std::span<const ProjectionMap> maps) {
  std::vector<Tensor> ys(maps.size());
  if constexpr (kWithCuda)
    if (!ctx.on_cpu() && !ctx.tape && project_each_cuda(ctx, x, seqs, maps, ys)) return ys;
  for (size_t i = 0; i < maps.size(); ++i)
    if (maps[i].weight) ys[i] = project(ctx, x, seqs, maps[i]);
  return ys;
}

Tensor project_swiglu(Context& ctx, const Tensor& x, const Tensor& gate, const Tensor& up) {
  if constexpr (kWithCuda) {
    Tensor y;
    if (!ctx.on_cpu() && !ctx.tape && project_swiglu_cuda(ctx, x, gate, up, y)) return y;
  }
  const Tensor gate_of_x = linear(ctx, x, gate), up_of_x = linear(ctx, x, up);
  return apply<SwiGlu>(ctx, {gate_of_x, up_of_x}).y;
}

}  // namespace braid
