#include "ops/elementwise.h"

#include <cmath>

#include "ops/cast.h"
#include "ops/swiglu.h"
#include "tests/support/laws.h"

namespace braid::testing {
namespace {

template <class Op>
bool register_unary_laws(const Op& op, const std::string& suite = std::string(Op::name)) {
  const auto of_shape = [&](const std::string& name, const Shape& shape, double scale) -> OpCase<Op> {
    return {.name = name,
            .inputs = [=](Context& ctx, Random& random) -> typename Op::Inputs { return {normal(ctx, random, shape, scale)}; },
            .attrs = op,
            .any_shape = true};
  };
  return register_laws<Op>(suite, {of_shape("small", {3, 7}, 1), of_shape("one", {1}, 1), of_shape("empty", {0, 3}, 1), of_shape("wide", {5, 19}, 4),
                                   of_shape("ranges", {40000}, 1)});
}
template <class Op>
bool register_binary_laws(const Op& op) {
  const auto of_shape = [&](const std::string& name, const Shape& shape) -> OpCase<Op> {
    return {.name = name,
            .inputs = [=](Context& ctx, Random& random) -> typename Op::Inputs {
              return {normal(ctx, random, shape), normal(ctx, random, shape)};
            },
            .attrs = op};
  };
  return register_laws<Op>(std::string(Op::name), {of_shape("small", {3, 7}), of_shape("empty", {0, 3}), of_shape("ranges", {40000})});
}
template <class... Operators>
bool register_all_unary(OperatorList<Operators...>) {
  return (register_unary_laws(Operators{}) && ...);
}
template <class... Operators>
bool register_all_binary(OperatorList<Operators...>) {
  return (register_binary_laws(Operators{}) && ...);
}
const bool kUnaryLaws = register_all_unary(UnaryOperators{});
const bool kBinaryLaws = register_all_binary(BinaryOperators{});
const bool kScaleLaws = register_unary_laws(Scale(-2.5), "scale_negative");

const std::vector<OpCase<SwiGlu>> kSwiGluCases = {
    {.name = "small",
     .inputs = [](Context& ctx, Random& random) -> SwiGlu::Inputs {
       return {normal(ctx, random, {5, 7}, 2), normal(ctx, random, {5, 7})};
     }},
    {.name = "ranges",
     .inputs = [](Context& ctx, Random& random) -> SwiGlu::Inputs {
       return {normal(ctx, random, {300, 101}), normal(ctx, random, {300, 101})};
     }},
    {.name = "empty",
     .inputs = [](Context& ctx, Random& random) -> SwiGlu::Inputs {
       return {normal(ctx, random, {0, 7}), normal(ctx, random, {0, 7})};
     }},
};
const bool kSwiGluLaws = register_laws<SwiGlu>("SwiGlu", kSwiGluCases);

template <class Op>
void expect_values(const Op& op, double (*definition)(double), double low) {
  Context ctx;
  std::vector<double> at = {0, 1e-30, -1e-30, 1e-6, -1e-6};
  for (double x = 0.01; x <= -low; x *= 1.07) at.insert(at.end(), {x, -x});
  const int64_t count = static_cast<int64_t>(at.size());
  const Tensor x = converted(ctx, from_vector(ctx, at, {count}), DType::f32);
  const Tensor y32 = apply<Op>(ctx, {x}, op).y, x64 = converted(ctx, x, DType::f64), y64 = apply<Op>(ctx, {x64}, op).y;
  for (int64_t i = 0; i < count; ++i) {
    const double expected = definition(x64.data<double>()[i]);
    EXPECT_NEAR(y64.data<double>()[i], expected, std::abs(expected) * 1e-13 + 1e-300) << Op::name << " of " << x64.data<double>()[i];
    EXPECT_NEAR(y32.data<float>()[i], expected, std::abs(expected) * 1e-6 + 1e-37) << Op::name << " of " << x64.data<double>()[i];
  }
}

TEST(Elementwise, IsTheDefinition) {
  expect_values(
      Silu(), [](double x) { return x / (1 + std::exp(-x)); }, -80);
  expect_values(
      Sigmoid(), [](double x) { return 1 / (1 + std::exp(-x)); }, -80);
  expect_values(
      LogSigmoid(), [](double x) { return x < 0 ? x - std::log1p(std::exp(x)) : -std::log1p(std::exp(-x)); }, -80);
  expect_values(
      Softplus(), [](double x) { return x > 0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x)); }, -80);
  expect_values(
      Exp(), [](double x) { return std::exp(x); }, -80);
  expect_values(
      Tanh(), [](double x) { return std::tanh(x); }, -80);
  expect_values(
      Scale(-3), [](double x) { return -3 * x; }, -80);
}

template <class Op>
void expect_at_extremes(DType dtype, std::vector<double> values) {
  Context ctx;
  const Tensor x = converted(ctx, from_vector<double>(ctx, {-1e4, -200, 200, 1e4}, {4}), dtype);
  const OpRun<Op> run = run_op<Op>(ctx, {x}, {});
  const std::vector<double> y = to_vector<double>(ctx, run.out.y);
  for (int i = 0; i < 4; ++i) EXPECT_NEAR(y[i], values[i], 1e-6 * std::abs(values[i]) + 1e-30) << Op::name << " " << i;
  EXPECT_TRUE(all_finite(ctx, run.d_in.x)) << Op::name;
}

TEST(Elementwise, IsStableAtTheExtremes) {
  for (const DType dtype : {DType::f32, DType::f64}) {
    expect_at_extremes<Silu>(dtype, {0, 0, 200, 1e4});
    expect_at_extremes<Sigmoid>(dtype, {0, 0, 1, 1});
    expect_at_extremes<LogSigmoid>(dtype, {-1e4, -200, 0, 0});
    expect_at_extremes<Softplus>(dtype, {0, 0, 200, 1e4});
    expect_at_extremes<Tanh>(dtype, {-1, -1, 1, 1});
  }
}

TEST(Elementwise, AddPassesItsGradientOnWithoutACopy) {
  Context ctx;
  Random random(1);
  const Tensor d_y = normal(ctx, random, {4});
  Add::Inputs d_in{Tensor::empty(ctx, {4}, DType::f64), Tensor::empty(ctx, {4}, DType::f64)};
  Add::backward_cpu(ctx, {}, {}, {d_y}, d_in);
  EXPECT_EQ(d_in.a.raw(), d_y.raw());
  EXPECT_EQ(d_in.b.raw(), d_y.raw());
}

TEST(Elementwise, AddOfAValueToItselfDoublesItsGradient) {
  Context ctx;
  Tape tape;
  WithTape recording(ctx, &tape);
  const Tensor x = tape.leaf(from_vector<double>(ctx, {1, 2}, {2}));
  const Tensor y = apply<Add>(ctx, {x, x}).y;
  tape.backward(ctx, y, from_vector<double>(ctx, {3, 5}, {2}));
  EXPECT_EQ(to_vector<double>(ctx, tape.grad(x)), (std::vector<double>{6, 10}));
}

TEST(Cast, RoundsForwardAndBackward) {
  Context ctx;
  for (const DType from : {DType::f64, DType::f32, DType::bf16}) {
    for (const DType to : {DType::f64, DType::f32, DType::bf16}) {
      Random random(1);
      const Tensor source = converted(ctx, normal(ctx, random, {3, 5}), from);
      Tape tape;
      WithTape recording(ctx, &tape);
      const Tensor x = tape.leaf(source);
      const Tensor y = apply<Cast>(ctx, {x}, {.dtype = to}).y;
      EXPECT_TRUE(same_bits(ctx, y, converted(ctx, source, to)));
      const Tensor d_y = converted(ctx, normal(ctx, random, {3, 5}), to);
      tape.backward(ctx, y, d_y);
      EXPECT_TRUE(same_bits(ctx, tape.grad(x), converted(ctx, d_y, from))) << from << " to " << to;
    }
  }
}

TEST(Elementwise, SaysWhatIsWrong) {
  Context ctx;
  Random random(1);
  const auto message = [&](auto&& call) -> std::string {
    try {
      call();
    } catch (const Error& error) {
      return error.what();
    }
    return "accepted";
  };
  const Tensor x = normal(ctx, random, {2, 3});
  EXPECT_EQ(message([&] { apply<Mul>(ctx, {x, normal(ctx, random, {3, 2})}); }), "mul: b must be f64 [2, 3] like a, got f64 [3, 2]");
  EXPECT_EQ(message([&] { apply<Silu>(ctx, {}); }), "silu: x must be floating, got nothing");
  EXPECT_EQ(message([&] { apply<Cast>(ctx, {x}, {.dtype = DType::i64}); }), "cast: dtype must be f64, f32 or bf16, got i64");
  EXPECT_EQ(message([&] { apply<SwiGlu>(ctx, {x, normal(ctx, random, {2})}); }), "swiglu: up must be f64 [2, 3] like gate, got f64 [2]");
}

}  // namespace
}  // namespace braid::testing
