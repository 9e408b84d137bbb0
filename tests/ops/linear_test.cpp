#include "ops/linear.h"

#include "ops/matmul.h"
#include "tests/support/laws.h"

namespace braid::testing {
namespace {

OpCase<Linear> linear_case(const std::string& name, const Shape& shape, int64_t out_size, bool bias, double scale = 1) {
  const auto inputs = [=](Context& ctx, Random& random) {
    Linear::Inputs in{normal(ctx, random, shape, scale), normal(ctx, random, {out_size, shape[-1]}), {}};
    if (bias) in.bias = normal(ctx, random, {out_size});
    return in;
  };
  return {.name = name, .inputs = inputs, .attrs = {}};
}

const std::vector<OpCase<Linear>> kLinearCases = {
    linear_case("plain", {5, 7}, 6, false),       linear_case("bias", {5, 7}, 6, true),        linear_case("leading", {2, 3, 8}, 4, true),
    linear_case("one_row", {1, 33}, 17, true),    linear_case("one_output", {40, 9}, 1, true), linear_case("empty", {0, 8}, 5, true),
    linear_case("vector", {9}, 3, true),          linear_case("huge", {6, 8}, 4, true, 1e4),   linear_case("tiny", {6, 8}, 4, false, 1e-15),
    linear_case("training", {700, 40}, 48, true),
};
const bool kLinearLaws = register_laws<Linear>("Linear", kLinearCases);

/// Widths of models, whose plans cuBLASLt chooses otherwise than those of small products; by kernels only.
const std::vector<OpCase<Linear>> kWideCases = {
    linear_case("wide_square", {130, 512}, 512, true),  linear_case("wide_in", {33, 2048}, 512, false),
    linear_case("wide_out", {20, 512}, 2048, true),     linear_case("wide_both", {17, 2048}, 1024, false),
    linear_case("wide_one_row", {1, 2048}, 768, true),  linear_case("wide_two_rows", {2, 1024}, 520, false),
    linear_case("wide_odd_in", {40, 1001}, 512, false), linear_case("wide_odd_out", {40, 512}, 515, true),
    linear_case("wide_tokens", {600, 512}, 640, false)};
const bool kWideLaws = register_cuda_laws<Linear>("Linear", kWideCases);
const bool kWideBiasLaws = register_laws<Linear>("LinearWideBias", {linear_case("bias", {5, 7}, 6, true)}, {.accumulator = {"bias"}});

OpCase<Matmul> matmul_case(bool ta, bool tb, int64_t m, int64_t n, int64_t k) {
  const auto inputs = [=](Context& ctx, Random& random) -> Matmul::Inputs {
    return {normal(ctx, random, ta ? Shape{k, m} : Shape{m, k}), normal(ctx, random, tb ? Shape{n, k} : Shape{k, n})};
  };
  const std::string name =
      std::string(ta ? "t" : "n") + (tb ? "t" : "n") + "_" + std::to_string(m) + "_" + std::to_string(n) + "_" + std::to_string(k);
  return {.name = name, .inputs = inputs, .attrs = {.transpose_a = ta, .transpose_b = tb}};
}

const std::vector<OpCase<Matmul>> kMatmulCases = {
    matmul_case(false, false, 5, 6, 7),    matmul_case(false, true, 5, 6, 7), matmul_case(true, false, 5, 6, 7), matmul_case(true, true, 5, 6, 7),
    matmul_case(false, false, 65, 33, 20), matmul_case(false, true, 3, 0, 4), matmul_case(true, false, 3, 4, 0),
};
const bool kMatmulLaws = register_laws<Matmul>("Matmul", kMatmulCases);

TEST(Linear, IsTheDefinition) {
  Context ctx;
  Random random(3);
  const Tensor x = normal(ctx, random, {2, 3, 5}), weight = normal(ctx, random, {4, 5}), bias = normal(ctx, random, {4});
  const Tensor y = apply<Linear>(ctx, {x, weight, bias}).y;
  ASSERT_EQ(y.shape(), (Shape{2, 3, 4}));
  for (int row = 0; row < 6; ++row) {
    for (int o = 0; o < 4; ++o) {
      double sum = bias.data<double>()[o];
      for (int i = 0; i < 5; ++i) sum += x.data<double>()[row * 5 + i] * weight.data<double>()[o * 5 + i];
      EXPECT_NEAR(y.data<double>()[row * 4 + o], sum, 1e-13);
    }
  }
}

TEST(Linear, AddsTheWeightGradientInPlace) {
  Context ctx(2);
  Random random(4);
  const Tensor x = normal(ctx, random, {6, 5}), weight = normal(ctx, random, {4, 5});
  const Tensor grad = normal(ctx, random, {4, 5}), before = copied(ctx, grad);
  Tape tape;
  Tensor y;
  {
    WithTape recording(ctx, &tape);
    const Tensor leaf = tape.leaf(weight, grad, &weight);
    y = apply<Linear>(ctx, {apply<Linear>(ctx, {x, leaf, {}}).y, normal(ctx, random, {3, 4}), {}}).y;
  }
  const Tensor seed = normal(ctx, random, y.shape());
  tape.backward(ctx, y, seed);
  const Tensor alone = Tensor::zeros(ctx, {4, 5}, DType::f64);
  Tape second;
  Random again(4);
  {
    WithTape recording(ctx, &second);
    normal(ctx, again, {6, 5}), normal(ctx, again, {4, 5}), normal(ctx, again, {4, 5});
    y = apply<Linear>(ctx, {apply<Linear>(ctx, {x, second.leaf(weight, alone), {}}).y, normal(ctx, again, {3, 4}), {}}).y;
  }
  second.backward(ctx, y, seed);
  for (int i = 0; i < 20; ++i) EXPECT_NEAR(grad.data<double>()[i], before.data<double>()[i] + alone.data<double>()[i], 1e-12);
  EXPECT_GT(relative_error(ctx, grad, before), 1e-3);
}

template <class Op>
std::string message_of(const typename Op::Inputs& in) {
  Context ctx;
  try {
    apply<Op>(ctx, in);
  } catch (const Error& error) {
    return error.what();
  }
  return "accepted";
}

TEST(Linear, SaysWhatIsWrong) {
  Context ctx;
  Random random(3);
  const Tensor x = normal(ctx, random, {4, 6}), weight = normal(ctx, random, {5, 6});
  EXPECT_EQ(message_of<Linear>({x, normal(ctx, random, {5, 7}), {}}), "linear: weight must be f64 [out, in = 6], got f64 [5, 7]");
  EXPECT_EQ(message_of<Linear>({x, weight, normal(ctx, random, {6})}), "linear: bias must be f64 [out = 5], got f64 [6]");
  EXPECT_EQ(message_of<Linear>({x, converted(ctx, weight, DType::f32), {}}), "linear: weight must be f64 [out, in = 6], got f32 [5, 6]");
  EXPECT_EQ(message_of<Matmul>({x, weight}), "matmul: b must be f64 [K = 6, N], got f64 [5, 6]");
  EXPECT_EQ(message_of<Matmul>({x, {}}), "matmul: b must be f64 [K = 6, N], got nothing");
}

}  // namespace
}  // namespace braid::testing
