#include "ops/rms_norm.h"

#include <cmath>

#include "tests/support/laws.h"

namespace braid::testing {
namespace {

OpCase<RmsNorm> rms_case(const std::string& name, const Shape& shape, bool residual, double scale) {
  return {.name = name,
          .inputs =
              [=](Context& ctx, Random& random) {
                RmsNorm::Inputs in{normal(ctx, random, shape, scale), uniform(ctx, random, {shape[-1]}, 0.5, 1.5), {}};
                if (residual) in.residual = normal(ctx, random, shape, scale);
                return in;
              },
          .attrs = {}};
}

const std::vector<OpCase<RmsNorm>> kCases = {
    rms_case("rows", {5, 16}, false, 1),        rms_case("residual", {7, 24}, true, 1), rms_case("heads", {3, 4, 8}, true, 1),
    rms_case("narrow", {4, 2}, false, 1),       rms_case("empty", {0, 8}, true, 1),     rms_case("huge", {4, 16}, false, 1e4),
    rms_case("many_rows", {3000, 16}, true, 1),
};
/// Widths of models, several warps a row; the last two are beyond what a thread holds in one pack, and no multiple of eight.
std::vector<OpCase<RmsNorm>> wide_cases() {
  std::vector<OpCase<RmsNorm>> all = {rms_case("wide_256", {9, 256}, false, 1),           rms_case("wide_1000", {9, 1000}, true, 1),
                                      rms_case("wide_1024", {60, 1024}, true, 1),         rms_case("wide_2048", {40, 2048}, false, 1),
                                      rms_case("wide_2048_residual", {7, 2048}, true, 1), rms_case("wide_2056", {6, 2056}, true, 1),
                                      rms_case("wide_5632", {13, 5632}, false, 1),        rms_case("wide_8192", {5, 8192}, true, 1),
                                      rms_case("wide_2049", {7, 2049}, true, 1),          rms_case("wide_8191", {3, 8191}, false, 1)};
  for (OpCase<RmsNorm>& c : all) c.gradcheck = false;
  return all;
}
const bool kLaws = register_laws<RmsNorm>("RmsNorm", kCases, {.accumulator = {"weight"}});
const bool kWideLaws = register_laws<RmsNorm>("RmsNorm", wide_cases(), {.accumulator = {"weight"}});

/// More rows than there are blocks, so that a block of several warps a row goes on to its next row; by kernels only.
const bool kWalkLaws = register_cuda_laws<RmsNorm>(
    "RmsNorm", {rms_case("walk_2048", {600, 2048}, true, 1), rms_case("walk_8192", {150, 8192}, false, 1)}, {.accumulator = {"weight"}});

TEST(RmsNorm, IsTheDefinition) {
  Context ctx;
  Random random(3);
  const Tensor x = normal(ctx, random, {4, 6}), weight = normal(ctx, random, {6}), residual = normal(ctx, random, {4, 6});
  const RmsNorm::Outputs out = apply<RmsNorm>(ctx, {x, weight, residual}, {.eps = 1e-3});
  for (int row = 0; row < 4; ++row) {
    double square = 0;
    const auto at = [&](int d) { return x.data<double>()[row * 6 + d] + residual.data<double>()[row * 6 + d]; };
    for (int d = 0; d < 6; ++d) square += at(d) * at(d);
    for (int d = 0; d < 6; ++d) {
      EXPECT_NEAR(out.y.data<double>()[row * 6 + d], at(d) / std::sqrt(square / 6 + 1e-3) * weight.data<double>()[d], 1e-12);
      EXPECT_EQ(out.sum.data<double>()[row * 6 + d], at(d));
    }
  }
}

TEST(RmsNorm, SaysWhatIsWrong) {
  Context ctx;
  Random random(3);
  try {
    apply<RmsNorm>(ctx, {normal(ctx, random, {4, 6}), normal(ctx, random, {5}), {}});
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "rms_norm: weight must be f64 [D = 6], got f64 [5]");
  }
}

}  // namespace
}  // namespace braid::testing
