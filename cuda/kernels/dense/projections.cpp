#include "ops/projections.h"

#include <algorithm>

#include "cuda/kernels/dense/matvec.h"
#include "cuda/kernels/operands.h"
#include "ops/linear.h"

namespace braid {
namespace {

constexpr int64_t kMostTaps = 32;  // a lane has one

/// Where y goes, with the checks of ops/linear.h; undefined where a launch does not take this product.
Tensor target_of(Context& ctx, const Tensor& x, const Tensor& weight, const Tensor& bias) {
  const Tensor y = Linear::allocate(ctx, {x, weight, bias}, {}).y;
  return cuda::takes_vector(weight, x, y) ? y : Tensor{};
}

/// The tail that the launch moves on; zeros for a sequence that starts.
Tensor tail_of(Context& ctx, const ProjectionMap& map) {
  if (!map.conv || !map.tail) return {};
  const Shape shape = {1, map.conv.size(0), map.conv.size(1) - 1};
  if (!*map.tail) *map.tail = Tensor::zeros(ctx, shape, DType::f32);
  BRAID_CHECK(map.tail->dtype() == DType::f32 && map.tail->shape() == shape && map.tail->contiguous(), "project_each: a tail must be f32 ", shape,
              ", got ", map.tail->dtype(), " ", map.tail->shape());
  return *map.tail;
}

}  // namespace

bool project_each_cuda(Context& ctx, const Tensor& x, const Sequences& seqs, std::span<const ProjectionMap> maps, std::span<Tensor> ys) {
  const auto is_taken = [](const ProjectionMap& map) { return !map.conv || (map.conv.size(1) <= kMostTaps && map.conv.dtype() == DType::f32); };
  if (cuda::num_rows(x) != 1 || seqs.count() != 1 || maps.size() > cuda::kMostProducts || !std::ranges::all_of(maps, is_taken)) return false;
  const WithOperator running(Linear::name, false);
  std::vector<cuda::VectorProduct> products;
  for (size_t i = 0; i < maps.size(); ++i) {
    const ProjectionMap& map = maps[i];
    if (!map.weight) continue;
    ys[i] = target_of(ctx, x, map.weight, map.bias);
    if (!ys[i]) return false;
    products.push_back({.weight = map.weight, .y = ys[i], .bias = map.bias, .conv = map.conv, .activation = map.activation});
  }
  size_t next = 0;
  for (const ProjectionMap& map : maps)
    if (map.weight) products[next++].tail = tail_of(ctx, map);
  cuda::multiply_vector(ctx, x, products);
  return true;
}

bool project_swiglu_cuda(Context& ctx, const Tensor& x, const Tensor& gate, const Tensor& up, Tensor& y) {
  if (cuda::num_rows(x) != 1 || up.shape() != gate.shape()) return false;
  const WithOperator running(Linear::name, false);
  y = target_of(ctx, x, gate, {});
  if (!y || !cuda::takes_vector(up, x, y)) return false;
  const cuda::VectorProduct pair{.weight = gate, .y = y, .up = up};
  cuda::multiply_vector(ctx, x, {&pair, 1});
  return true;
}

}  // namespace braid
