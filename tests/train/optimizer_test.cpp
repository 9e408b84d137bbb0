#include "train/optimizer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/train/tiny_model.h"
#include "train/schedule.h"

namespace braid::testing {
namespace {

void fill_grads(Context& ctx, const Module& model, uint64_t seed) {
  zero_grads(ctx, model);
  Random random(seed);
  for (Parameter* parameter : model.parameters()) {
    std::vector<double> values(parameter->value.numel());
    for (double& value : values) value = random.normal();
    convert_into(ctx, parameter->grad, from_vector(ctx, values, parameter->shape), false);
  }
}

std::vector<double> updated(int num_threads, DType dtype, int num_steps) {
  Context ctx(num_threads);
  TinyModel model(ctx, 300, 70, dtype);
  AdamW optimizer(ctx, model.parameters(), {});
  for (int step = 0; step < num_steps; ++step) {
    fill_grads(ctx, model, 10 + step);
    const double norm = optimizer.gradient_norm(ctx);
    optimizer.step(ctx, 0.01 * (step + 1), clip_scale(norm, 1));
  }
  return model.values(ctx);
}

/// The same written down plainly, one number after the other.
std::vector<double> expected(int num_steps) {
  Context ctx;
  TinyModel model(ctx, 300, 70, DType::f64);
  std::vector<double> x = model.values(ctx), m(x.size()), v(x.size());
  std::vector<bool> decays;
  for (const Parameter* parameter : model.parameters()) decays.insert(decays.end(), parameter->shape.numel(), parameter->name != "norm.weight");
  for (int step = 0; step < num_steps; ++step) {
    fill_grads(ctx, model, 10 + step);
    std::vector<double> g;
    for (const Parameter* parameter : model.parameters())
      for (double value : to_vector<double>(ctx, parameter->grad)) g.push_back(value);
    double norm = 0;
    for (double value : g) norm += value * value;
    norm = std::sqrt(norm);
    const double lr = 0.01 * (step + 1), t = step + 1;
    for (size_t i = 0; i < x.size(); ++i) {
      const double clipped = norm > 1 ? g[i] / norm : g[i];
      m[i] = 0.9 * m[i] + 0.1 * clipped;
      v[i] = 0.95 * v[i] + 0.05 * clipped * clipped;
      const double m_hat = m[i] / (1 - std::pow(0.9, t)), v_hat = v[i] / (1 - std::pow(0.95, t));
      x[i] -= lr * (m_hat / (std::sqrt(v_hat) + 1e-8) + (decays[i] ? 0.1 * x[i] : 0));
    }
  }
  return x;
}

TEST(AdamW, IsThePlainAlgorithm) {
  const std::vector<double> want = expected(5), wide = updated(1, DType::f64, 5), narrow = updated(1, DType::f32, 5);
  for (size_t i = 0; i < want.size(); ++i) {
    ASSERT_NEAR(wide[i], want[i], 1e-12) << i;
    ASSERT_NEAR(narrow[i], want[i], 2e-5) << i;
  }
}

TEST(AdamW, SameBitsForAnyNumberOfThreads) {
  const std::vector<double> one = updated(1, DType::f32, 3);
  EXPECT_EQ(one, updated(2, DType::f32, 3));
  EXPECT_EQ(one, updated(5, DType::f32, 3));
}

TEST(AdamW, RefreshesCopiesInBfloat16) {
  Context ctx;
  TinyModel model(ctx, 30, 8);
  set_compute_dtype(ctx, model, DType::bf16);
  AdamW optimizer(ctx, model.parameters(), {});
  fill_grads(ctx, model, 3);
  optimizer.step(ctx, 0.1);
  for (const Parameter* parameter : model.parameters())
    if (parameter->compute) {
      EXPECT_EQ(to_vector<float>(ctx, parameter->compute), to_vector<float>(ctx, converted(ctx, parameter->value, DType::bf16)));
    }
  EXPECT_TRUE(model.parameter("head.weight").compute.defined());
}

TEST(AdamW, NormAndClipping) {
  Context ctx;
  TinyModel model(ctx, 4, 2, DType::f64);
  zero_grads(ctx, model);
  AdamW optimizer(ctx, model.parameters(), {});
  EXPECT_EQ(optimizer.gradient_norm(ctx), 0);
  model.parameter("norm.weight").grad.data<double>()[1] = 3;
  model.parameter("head.weight").grad.data<double>()[7] = -4;
  EXPECT_DOUBLE_EQ(optimizer.gradient_norm(ctx), 5);
  EXPECT_DOUBLE_EQ(clip_scale(5, 1), 0.2);
  EXPECT_EQ(clip_scale(5, 0), 1);
  EXPECT_EQ(clip_scale(0.5, 1), 1);
  model.parameter("head.weight").grad.data<double>()[0] = std::numeric_limits<double>::quiet_NaN();
  EXPECT_TRUE(std::isnan(optimizer.gradient_norm(ctx)));
}

TEST(AdamW, RefusesWhatCannotBeRight) {
  Context ctx;
  TinyModel model(ctx, 4, 2);
  const auto with = [&](const AdamWOptions& options) { return error_of([&] { AdamW(ctx, model.parameters(), options); }); };
  EXPECT_EQ(with({.beta1 = 1}), "adamw: beta1 must be in [0, 1), got 1");
  EXPECT_NE(with({.beta2 = -0.1}), "");
  EXPECT_NE(with({.eps = 0}), "");
  EXPECT_NE(with({.weight_decay = -1}), "");
  AdamW optimizer(ctx, model.parameters(), {});
  EXPECT_NE(error_of([&] { optimizer.step(ctx, 0.1); }), "");  // there are no gradients yet
}

TEST(Schedule, CosineRisesAndFallsToItsFloor) {
  const Schedule schedule{.kind = ScheduleKind::cosine, .peak = 2, .steps = 110, .warmup = 10, .floor_ratio = 0.25};
  EXPECT_DOUBLE_EQ(learning_rate(schedule, 0), 0.2);
  EXPECT_DOUBLE_EQ(learning_rate(schedule, 9), 2);
  EXPECT_DOUBLE_EQ(learning_rate(schedule, 59), 1.25);  // half way
  EXPECT_DOUBLE_EQ(learning_rate(schedule, 109), 0.5);
  EXPECT_DOUBLE_EQ(learning_rate(schedule, 1000), 0.5);
  for (int64_t step = 10; step < 110; ++step) EXPECT_LT(learning_rate(schedule, step), learning_rate(schedule, step - 1));
}

TEST(Schedule, WsdStaysAndDecays) {
  const Schedule schedule{.kind = ScheduleKind::wsd, .peak = 1, .steps = 100, .warmup = 5, .floor_ratio = 0, .decay_fraction = 0.2};
  EXPECT_DOUBLE_EQ(learning_rate(schedule, 4), 1);
  EXPECT_DOUBLE_EQ(learning_rate(schedule, 79), 1);
  EXPECT_DOUBLE_EQ(learning_rate(schedule, 80), 0.95);
  EXPECT_DOUBLE_EQ(learning_rate(schedule, 99), 0);
  EXPECT_DOUBLE_EQ(learning_rate({.kind = ScheduleKind::constant, .peak = 1, .steps = 10}, 9), 1);
}

TEST(Schedule, RefusesWhatCannotBeRight) {
  const auto with = [](const Schedule& schedule) { return error_of([&] { check_schedule(schedule); }); };
  EXPECT_EQ(with({}), "");
  EXPECT_EQ(with({.steps = 0}), "schedule: steps must be positive, got 0");
  EXPECT_NE(with({.steps = 10, .warmup = 11}), "");
  EXPECT_NE(with({.peak = 0}), "");
  EXPECT_NE(with({.floor_ratio = 1.5}), "");
  EXPECT_NE(with({.decay_fraction = -0.5}), "");
  EXPECT_EQ(error_of([] { parse_schedule("linear"); }), "schedule: expected constant, cosine or wsd, got 'linear'");
  EXPECT_EQ(parse_schedule("wsd"), ScheduleKind::wsd);
}

}  // namespace
}  // namespace braid::testing
