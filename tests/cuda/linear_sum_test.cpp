// Gradients of an x that several linear maps share: added by the products themselves.
#include <gtest/gtest.h>

#include "cuda/runtime/runtime.h"
#include "ops/elementwise.h"
#include "ops/linear.h"
#include "tests/support/cuda_laws.h"

namespace braid::testing {
namespace {

struct Maps {
  Tensor x, first, second, third;
};

/// d_x of first(x) + second(x) + third(x) + x, x itself a leaf or the value of another operator, and the gradient of the third map.
std::pair<Tensor, Tensor> gradients(Context& ctx, const Maps& in, bool x_is_leaf) {
  Tape tape;
  WithTape recording(ctx, &tape);
  const Tensor leaf = tape.leaf(in.x), weight = tape.leaf(in.third);
  const Tensor x = x_is_leaf ? leaf : apply<Silu>(ctx, {leaf}).y;
  const Tensor sum = apply<Add>(ctx, {apply<Add>(ctx, {linear(ctx, x, tape.leaf(in.first)), linear(ctx, x, tape.leaf(in.second))}).y, x}).y;
  const Tensor y = apply<Add>(ctx, {linear(ctx, x, weight), sum}).y;
  tape.backward(ctx, y, in.x);
  return {tape.grad(leaf), tape.grad(weight)};
}

TEST(LinearSum, IsTheSumOfTheMapsGradients) {
  if (cuda::num_devices() == 0) GTEST_SKIP() << "no GPU";
  Context host, gpu = cuda::make_context();
  for (const DType dtype : {DType::f32, DType::bf16})
    for (const bool x_is_leaf : {false, true}) {
      Random random(5);
      const auto make = [&](const Shape& shape) { return converted(host, converted(host, normal(host, random, shape), dtype), DType::f64); };
      const Maps wide{make({200, 64}), make({64, 64}), make({64, 64}), make({64, 64})};
      const auto narrow = [&](const Tensor& tensor) { return copied(gpu, converted(host, tensor, dtype)); };
      const auto expected = gradients(host, wide, x_is_leaf);
      const auto actual = gradients(gpu, {narrow(wide.x), narrow(wide.first), narrow(wide.second), narrow(wide.third)}, x_is_leaf);
      const double tolerance = dtype == DType::bf16 ? 6e-3 : 1e-5;
      const auto error = [&](const Tensor& given, const Tensor& reference) {
        return relative_error(host, from_vector(host, to_vector<double>(gpu, given), reference.shape()), reference);
      };
      EXPECT_LE(error(actual.first, expected.first), tolerance) << dtype << (x_is_leaf ? " leaf" : " value");
      EXPECT_LE(error(actual.second, expected.second), tolerance) << dtype << (x_is_leaf ? " leaf" : " value");
    }
}

}  // namespace
}  // namespace braid::testing
