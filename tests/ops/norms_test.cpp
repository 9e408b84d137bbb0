#include <cmath>

#include "ops/gated_rms_norm.h"
#include "ops/l2_norm.h"
#include "tests/support/laws.h"

namespace braid::testing {
namespace {

OpCase<GatedRmsNorm> gated_case(const std::string& name, const Shape& shape, GateActivation activation, double scale = 1, double eps = 1e-6) {
  const auto inputs = [=](Context& ctx, Random& random) -> GatedRmsNorm::Inputs {
    return {normal(ctx, random, shape, scale), normal(ctx, random, shape), uniform(ctx, random, {shape[-1]}, 0.5, 1.5)};
  };
  return {.name = name, .inputs = inputs, .attrs = {.eps = eps, .activation = activation}};
}

const std::vector<OpCase<GatedRmsNorm>> kGatedCases = {
    gated_case("swish", {5, 16}, GateActivation::swish),        gated_case("sigmoid", {5, 16}, GateActivation::sigmoid),
    gated_case("odd_width", {3, 2, 21}, GateActivation::swish), gated_case("one_wide", {4, 1}, GateActivation::sigmoid, 1, 0.5),
    gated_case("empty", {0, 8}, GateActivation::swish),         gated_case("huge", {4, 24}, GateActivation::swish, 1e4),
    gated_case("many_rows", {3000, 16}, GateActivation::swish),
};
template <class Op>
OpCase<Op> large(OpCase<Op> c) {
  c.gradcheck = false;
  return c;
}
const bool kGatedLaws = register_laws<GatedRmsNorm>("GatedRmsNorm", kGatedCases, {.accumulator = {"weight"}});
const bool kGatedLargeLaws = register_laws<GatedRmsNorm>(
    "GatedRmsNorm",
    {large(gated_case("heads", {300, 4, 128}, GateActivation::swish)), large(gated_case("wide", {40, 2048}, GateActivation::sigmoid)),
     // Several warps a row; more than one pack a thread; no multiple of eight.
     large(gated_case("heads_of_512", {70, 4, 512}, GateActivation::swish)), large(gated_case("wide_1000", {9, 1000}, GateActivation::swish)),
     large(gated_case("wide_2056", {6, 2056}, GateActivation::swish)), large(gated_case("wide_5632", {13, 5632}, GateActivation::sigmoid)),
     large(gated_case("wide_8192", {5, 8192}, GateActivation::swish)), large(gated_case("wide_2049", {7, 2049}, GateActivation::swish)),
     large(gated_case("wide_8191", {3, 8191}, GateActivation::sigmoid))},
    {.accumulator = {"weight"}});
/// More rows than there are blocks, so that a block of several warps a row goes on to its next row; by kernels only.
const bool kGatedWalkLaws = register_cuda_laws<GatedRmsNorm>(
    "GatedRmsNorm", {gated_case("walk_2048", {600, 2048}, GateActivation::swish), gated_case("walk_8192", {150, 8192}, GateActivation::sigmoid)},
    {.accumulator = {"weight"}});

// One value is all length, so that its gradient is what eps leaves; and at 1e-4 a difference step is no small step.
OpCase<L2Norm> l2_case(const std::string& name, const Shape& shape, double scale = 1, double eps = 1e-6) {
  return {.name = name,
          .inputs = [=](Context& ctx, Random& random) -> L2Norm::Inputs { return {normal(ctx, random, shape, scale)}; },
          .attrs = {.eps = eps},
          .gradcheck = scale >= 1};
}

const std::vector<OpCase<L2Norm>> kL2Cases = {l2_case("rows", {5, 16}),
                                              l2_case("odd_width", {3, 4, 21}),
                                              l2_case("one_wide", {4, 1}, 1, 0.5),
                                              l2_case("empty", {0, 8}),
                                              l2_case("huge", {4, 24}, 1e4),
                                              l2_case("small", {4, 24}, 1e-4),
                                              l2_case("many_rows", {2000, 16}),
                                              large(l2_case("heads", {300, 4, 128})),
                                              large(l2_case("wide", {20, 2048})),
                                              large(l2_case("heads_of_512", {70, 4, 512})),
                                              large(l2_case("wide_1000", {9, 1000})),
                                              large(l2_case("wide_2056", {6, 2056})),
                                              large(l2_case("wide_5632", {13, 5632})),
                                              large(l2_case("wide_8192", {5, 8192})),
                                              large(l2_case("wide_2049", {7, 2049})),
                                              large(l2_case("wide_8191", {3, 8191}))};
const bool kL2Laws = register_laws<L2Norm>("L2Norm", kL2Cases);
const bool kL2WalkLaws = register_cuda_laws<L2Norm>("L2Norm", {l2_case("walk_2048", {600, 2048}), l2_case("walk_8192", {150, 8192})});

TEST(GatedRmsNorm, IsTheDefinition) {
  Context ctx;
  Random random(3);
  const Tensor x = normal(ctx, random, {4, 19}), gate = normal(ctx, random, {4, 19}, 3), weight = normal(ctx, random, {19});
  for (const GateActivation activation : {GateActivation::swish, GateActivation::sigmoid}) {
    const Tensor y = apply<GatedRmsNorm>(ctx, {x, gate, weight}, {.eps = 1e-3, .activation = activation}).y;
    for (int row = 0; row < 4; ++row) {
      double square = 0;
      for (int d = 0; d < 19; ++d) square += std::pow(x.data<double>()[row * 19 + d], 2);
      for (int d = 0; d < 19; ++d) {
        const int64_t i = row * 19 + d;
        const double z = gate.data<double>()[i], s = 1 / (1 + std::exp(-z)), act = activation == GateActivation::swish ? z * s : s;
        EXPECT_NEAR(y.data<double>()[i], x.data<double>()[i] / std::sqrt(square / 19 + 1e-3) * weight.data<double>()[d] * act, 1e-12);
      }
    }
  }
}

TEST(L2Norm, IsTheDefinition) {
  Context ctx;
  Random random(3);
  const Tensor x = normal(ctx, random, {4, 19});
  const Tensor y = apply<L2Norm>(ctx, {x}, {.eps = 1e-3}).y;
  for (int row = 0; row < 4; ++row) {
    double square = 0;
    for (int d = 0; d < 19; ++d) square += std::pow(x.data<double>()[row * 19 + d], 2);
    for (int d = 0; d < 19; ++d) EXPECT_NEAR(y.data<double>()[row * 19 + d], x.data<double>()[row * 19 + d] / std::sqrt(square + 1e-3), 1e-13);
  }
}

TEST(Norms, StayFiniteAtTheExtremes) {
  Context ctx;
  for (const float value : {0.0f, 1e-30f, 1e4f, -1e4f}) {
    const Tensor x = from_vector(ctx, std::vector<float>(32, value), {2, 16}), weight = from_vector(ctx, std::vector<float>(16, 1.0f), {16});
    const OpRun<L2Norm> l2 = run_op<L2Norm>(ctx, {x}, {});
    EXPECT_TRUE(all_finite(ctx, l2.out.y) && all_finite(ctx, l2.d_in.x)) << value;
    for (const GateActivation activation : {GateActivation::swish, GateActivation::sigmoid}) {
      const OpRun<GatedRmsNorm> gated = run_op<GatedRmsNorm>(ctx, {x, x, weight}, {.activation = activation});
      EXPECT_TRUE(all_finite(ctx, gated.out.y)) << value;
      for (const Tensor* d : tensors_of(gated.d_in)) EXPECT_TRUE(all_finite(ctx, *d)) << value;
    }
  }
}

TEST(GatedRmsNorm, SaysWhatIsWrong) {
  Context ctx;
  Random random(3);
  try {
    apply<GatedRmsNorm>(ctx, {normal(ctx, random, {4, 6}), normal(ctx, random, {4, 5}), normal(ctx, random, {6})});
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "gated_rms_norm: gate must be f64 [4, 6] like x, got f64 [4, 5]");
  }
}

}  // namespace
}  // namespace braid::testing
