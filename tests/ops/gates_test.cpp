#include "ops/gates.h"

#include <cmath>
#include <limits>

#include "tests/support/laws.h"

namespace braid::testing {
namespace {

OpCase<HgrnGate> hgrn_case(const std::string& name, int64_t N, int64_t D, double scale, std::optional<std::pair<double, double>> bound) {
  const auto inputs = [=](Context& ctx, Random& random) {
    HgrnGate::Inputs in{normal(ctx, random, {N, D}, scale), {}};
    if (bound) in.lower_bound = uniform(ctx, random, {D}, bound->first, bound->second);
    return in;
  };
  return {.name = name, .inputs = inputs, .attrs = {}};
}

const std::vector<OpCase<HgrnGate>> kHgrnCases = {
    hgrn_case("no_bound", 5, 7, 2, {}),
    hgrn_case("bound", 5, 7, 2, {{0.01, 0.9}}),
    hgrn_case("low_bound", 4, 19, 3, {{0.05, 0.1}}),
    hgrn_case("high_bound", 4, 19, 3, {{0.9, 0.999}}),
    hgrn_case("empty", 0, 7, 2, {{0.1, 0.9}}),
    hgrn_case("many_tokens", 2000, 24, 2, {{0.1, 0.9}}),
};
/// Wider and longer than a block of the kernels.
template <class Op>
OpCase<Op> large(OpCase<Op> c) {
  c.gradcheck = false;
  return c;
}
const bool kHgrnLargeLaws =
    register_laws<HgrnGate>("HgrnGate", {large(hgrn_case("large", 500, 264, 2, {{0.1, 0.9}}))}, {.accumulator = {"lower_bound"}});

const bool kHgrnLaws = register_laws<HgrnGate>("HgrnGate", kHgrnCases, {.accumulator = {"lower_bound"}});

OpCase<LowerBound> bound_case(int64_t num_layers, int64_t layer, double scale) {
  return {.name = "layer_" + std::to_string(layer) + "_of_" + std::to_string(num_layers) + (scale > 1 ? "_wide" : ""),
          .inputs = [=](Context& ctx, Random& random) -> LowerBound::Inputs {
            return {normal(ctx, random, {num_layers, 6}, scale)};
          },
          .attrs = {.layer = layer}};
}
const bool kBoundLaws = register_laws<LowerBound>(
    "LowerBound", {bound_case(4, 0, 1), bound_case(4, 2, 1), bound_case(4, 3, 1), bound_case(1, 0, 1), bound_case(5, 2, 5)});

OpCase<GlaGate> gla_case(const std::string& name, int64_t N, int64_t D, double scale, const GlaGate::Attrs& attrs) {
  return {.name = name,
          .inputs = [=](Context& ctx, Random& random) -> GlaGate::Inputs {
            return {normal(ctx, random, {N, D}, scale)};
          },
          .attrs = attrs};
}
const bool kGlaLaws = register_laws<GlaGate>(
    "GlaGate", {gla_case("plain", 5, 7, 2, {}), gla_case("clamped", 5, 19, 3, {.normalizer = 4, .clamp_min = -0.5}), gla_case("empty", 0, 7, 1, {}),
                gla_case("ranges", 2000, 24, 1, {}), large(gla_case("large", 600, 256, 2, {}))});

OpCase<GdnGate> gdn_case(const std::string& name, int64_t N, int64_t HV, double scale) {
  return {.name = name,
          .inputs = [=](Context& ctx, Random& random) -> GdnGate::Inputs {
            return {normal(ctx, random, {N, HV}, scale), uniform(ctx, random, {HV}, -2, 2.7), normal(ctx, random, {HV})};
          },
          .attrs = {}};
}
const bool kGdnLaws = register_laws<GdnGate>(
    "GdnGate", {gdn_case("plain", 5, 4, 1), gdn_case("many_heads", 3, 37, 3), gdn_case("empty", 0, 4, 1), gdn_case("many_tokens", 9000, 4, 1)},
    {.accumulator = {"A_log", "dt_bias"}});

/// log(lb + (1 − lb) sigmoid(f)) in long double, as log-sum-exp.
double log_forget(double f, double lb) {
  const long double log_s = f < 0 ? f - std::log1p(std::exp(static_cast<long double>(f))) : -std::log1p(std::exp(-static_cast<long double>(f)));
  if (lb == 0) return static_cast<double>(log_s);
  const long double off = (1 - static_cast<long double>(lb)) / (1 + std::exp(static_cast<long double>(f)));
  if (off < 0.5L) return static_cast<double>(std::log1p(-off));
  const long double log_lb = std::log(static_cast<long double>(lb)), rest = std::log1p(-static_cast<long double>(lb)) + log_s;
  return static_cast<double>(std::max(log_lb, rest) + std::log1p(std::exp(-std::abs(log_lb - rest))));
}

TEST(HgrnGate, IsAccurateEverywhere) {
  Context ctx;
  const std::vector<double> fs = {-1e4, -700, -120, -95, -88, -60, -20, -3, -1e-30, 0, 1e-30, 0.5, 3, 10, 16, 20, 40, 80};
  for (const DType dtype : {DType::f32, DType::f64}) {
    for (const double bound : {0.0, 1e-30, 1e-8, 0.1, 0.5, 0.9, 0.9999, 1.0}) {
      const int64_t N = static_cast<int64_t>(fs.size());
      const Tensor f = converted(ctx, from_vector(ctx, fs, {N, 1}), dtype), lb = converted(ctx, from_vector<double>(ctx, {bound}, {1}), dtype);
      const HgrnGate::Outputs out = apply<HgrnGate>(ctx, {f, lb});
      const std::vector<double> log_decay = to_vector<double>(ctx, out.log_decay), gate = to_vector<double>(ctx, out.input_gate);
      const double exact_bound = to_vector<double>(ctx, lb)[0], tolerance = dtype == DType::f32 ? 1e-6 : 1e-13;
      const std::vector<double> exact_f = to_vector<double>(ctx, f);
      for (int64_t i = 0; i < N; ++i) {
        const double expected = log_forget(exact_f[i], exact_bound);
        EXPECT_NEAR(log_decay[i], expected, std::abs(expected) * tolerance + 1e-37) << "f " << exact_f[i] << " bound " << bound;
        const double complement = (1 - exact_bound) / (1 + std::exp(exact_f[i]));
        EXPECT_NEAR(gate[i], complement, complement * tolerance + 1e-37) << "f " << exact_f[i] << " bound " << bound;
      }
    }
  }
}

TEST(HgrnGate, WithoutABoundIsWithABoundOfZero) {
  Context ctx;
  Random random(2);
  const Tensor f = normal(ctx, random, {30, 5}, 10);
  const OpRun<HgrnGate> without = run_op<HgrnGate>(ctx, {f, {}}, {}), with = run_op<HgrnGate>(ctx, {f, Tensor::zeros(ctx, {5}, DType::f64)}, {});
  EXPECT_LE(relative_error(ctx, with.out.log_decay, without.out.log_decay), 1e-14);
  EXPECT_LE(relative_error(ctx, with.out.input_gate, without.out.input_gate), 1e-14);
  EXPECT_LE(relative_error(ctx, with.d_in.f, without.d_in.f), 1e-13);
}

TEST(Gates, GradientsStayFiniteAtTheExtremes) {
  Context ctx;
  const std::vector<double> at = {-1e4, -200, -1e-30, 0, 1e-30, 200, 1e4};
  for (const DType dtype : {DType::f32, DType::f64}) {
    const Tensor x = converted(ctx, from_vector(ctx, at, {7, 1}), dtype);
    for (const double bound : {0.0, 1e-30, 0.5, 1.0}) {
      const Tensor lb = converted(ctx, from_vector<double>(ctx, {bound}, {1}), dtype);
      const OpRun<HgrnGate> run = run_op<HgrnGate>(ctx, {x, lb}, {});
      EXPECT_TRUE(all_finite(ctx, run.d_in.f) && all_finite(ctx, run.d_in.lower_bound)) << bound;
    }
    EXPECT_TRUE(all_finite(ctx, run_op<GlaGate>(ctx, {x}, {}).d_in.x));
    for (const double number : {-1e4, -1e-30, 2.7}) {
      const Tensor A_log = converted(ctx, from_vector<double>(ctx, {number}, {1}), dtype), dt_bias = Tensor::zeros(ctx, {1}, dtype);
      const OpRun<GdnGate> run = run_op<GdnGate>(ctx, {x, A_log, dt_bias}, {});
      for (const Tensor* tensor : {&run.out.log_decay, &run.d_in.a, &run.d_in.A_log, &run.d_in.dt_bias})
        EXPECT_TRUE(all_finite(ctx, *tensor)) << number;
    }
  }
}

TEST(GdnGate, IsTheDefinition) {
  Context ctx;
  Random random(2);
  const Tensor a = normal(ctx, random, {6, 20}, 3), A_log = normal(ctx, random, {20}), dt_bias = normal(ctx, random, {20});
  const Tensor log_decay = apply<GdnGate>(ctx, {a, A_log, dt_bias}).log_decay;
  for (int i = 0; i < 120; ++i) {
    const double z = a.data<double>()[i] + dt_bias.data<double>()[i % 20];
    EXPECT_NEAR(log_decay.data<double>()[i], -std::exp(A_log.data<double>()[i % 20]) * std::log1p(std::exp(z)), 1e-12);
  }
}

TEST(GlaGate, IsTheDefinitionAndStopsGradientWhereClamped) {
  Context ctx;
  const Tensor x = from_vector<double>(ctx, {-1e4, -40, -2, 0, 40}, {5, 1});
  const OpRun<GlaGate> run = run_op<GlaGate>(ctx, {x}, {.normalizer = 16, .clamp_min = -1});
  const double expected[] = {-1, -1, -std::log1p(std::exp(2.0)) / 16, -std::log(2.0) / 16, -std::exp(-40.0) / 16};
  for (int i = 0; i < 5; ++i) EXPECT_NEAR(run.out.log_decay.data<double>()[i], expected[i], 1e-14);
  for (int i = 0; i < 5; ++i) EXPECT_EQ(run.d_in.x.data<double>()[i] == 0, i < 2) << i;
}

void expect_nan_gates_to_stay(Context& ctx) {
  Context host;
  std::vector<double> values(64, 0.5);
  values[5] = std::numeric_limits<double>::quiet_NaN();
  const Tensor x = copied(ctx, converted(host, from_vector(host, values, {8, 8}), DType::f32));
  const auto only_there = [&](const Tensor& log_decay, const std::string& what) {
    const std::vector<double> got = to_vector<double>(ctx, log_decay);
    for (int i = 0; i < 64; ++i) EXPECT_EQ(std::isnan(got[i]), i == 5) << what << ", element " << i;
  };
  only_there(apply<GlaGate>(ctx, {x}, {.normalizer = 16, .clamp_min = {}}).log_decay, "gla_gate");
  only_there(apply<GlaGate>(ctx, {x}, {.normalizer = 16, .clamp_min = -1}).log_decay, "gla_gate, clamped");
  only_there(apply<HgrnGate>(ctx, {x, {}}, {}).log_decay, "hgrn_gate");
  const Tensor zeros = Tensor::zeros(ctx, {8}, DType::f32);
  only_there(apply<GdnGate>(ctx, {x, zeros, zeros}).log_decay, "gdn_gate");
}

TEST(Gates, NaNStays) {
  Context ctx;
  expect_nan_gates_to_stay(ctx);
}

bool register_nan_gates_on_cuda() {
  if constexpr (kWithCuda)
    register_law("Gates", "nan_stays_cuda_f32", [] {
      if (cuda::num_devices() == 0) GTEST_SKIP() << "no GPU";
      Context gpu = cuda::make_context();
      expect_nan_gates_to_stay(gpu);
    });
  return true;
}
const bool kNanGatesOnCuda = register_nan_gates_on_cuda();

TEST(LowerBound, IsTheDefinition) {
  Context ctx;
  Random random(2);
  const Tensor weights = normal(ctx, random, {5, 3});
  for (int64_t layer = 0; layer < 5; ++layer) {
    const Tensor bound = apply<LowerBound>(ctx, {weights}, {.layer = layer}).bound;
    for (int d = 0; d < 3; ++d) {
      double total = 0, inside = 0;
      for (int l = 0; l < 5; ++l) {
        const double e = std::exp(weights.data<double>()[l * 3 + d]);
        total += e;
        if (l >= 1 && l <= layer) inside += e;
      }
      EXPECT_NEAR(bound.data<double>()[d], inside / total, 1e-14);
      if (layer == 0) {
        EXPECT_EQ(bound.data<double>()[d], 0);
      }
    }
  }
}

TEST(Gates, SayWhatIsWrong) {
  Context ctx;
  Random random(2);
  const Tensor x = normal(ctx, random, {4, 3});
  const auto message = [&](auto&& call) -> std::string {
    try {
      call();
    } catch (const Error& error) {
      return error.what();
    }
    return "accepted";
  };
  EXPECT_EQ(message([&] { apply<HgrnGate>(ctx, {x, normal(ctx, random, {4})}); }), "hgrn_gate: lower_bound must be f64 [D = 3], got f64 [4]");
  EXPECT_EQ(message([&] { apply<LowerBound>(ctx, {x}, {.layer = 4}); }), "lower_bound: layer must be in [0, 4), got 4");
  EXPECT_EQ(message([&] { apply<GlaGate>(ctx, {x}, {.normalizer = 0, .clamp_min = {}}); }), "gla_gate: normalizer must be above 0, got 0");
  EXPECT_EQ(message([&] { apply<GdnGate>(ctx, {x, normal(ctx, random, {3}), {}}); }), "gdn_gate: dt_bias must be f64 [HV = 3], got nothing");
}

}  // namespace
}  // namespace braid::testing
