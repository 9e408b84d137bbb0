#include "ops/linear_cross_entropy.h"

#include <sys/resource.h>

#include <cmath>

#include "tests/support/laws.h"

namespace braid::testing {
namespace {

struct Setting {
  int64_t N, D, V;
  double share;  // of the tokens that have a target
  LinearCrossEntropy::Attrs attrs = {};
};

LinearCrossEntropy::Inputs inputs_of(Context& ctx, Random& random, const Setting& setting, double scale = 1) {
  std::vector<int64_t> targets(setting.N);
  for (int64_t& target : targets) target = random.uniform() < setting.share ? static_cast<int64_t>(random.below(setting.V)) : -1;
  return {normal(ctx, random, {setting.N, setting.D}, scale), normal(ctx, random, {setting.V, setting.D}, scale),
          from_vector(ctx, targets, {setting.N})};
}

const std::vector<std::pair<std::string, Setting>> kSettings = {
    {"all_targets", {7, 4, 5, 1}},
    {"some_targets", {20, 4, 9, 0.4}},
    {"no_targets", {5, 4, 6, 0}},
    {"blocks", {33, 6, 11, 0.8, {.block_tokens = 4}}},
    {"block_of_one", {6, 3, 4, 1, {.block_tokens = 1}}},
    {"denominator", {9, 4, 7, 0.6, {.denominator = 3.5}}},
    {"one_class", {4, 3, 1, 1}},
    {"many_classes", {5, 3, 3000, 1}},
    {"many_tokens", {700, 8, 40, 0.9, {.block_tokens = 256}}},
    {"large", {300, 64, 1000, 0.9, {.block_tokens = 128}}},
    {"full_row", {3, 4, 32768, 1}},
    {"more_than_a_row", {3, 4, 40000, 0.7}},
    {"no_tokens", {0, 4, 5, 1}},
};

std::vector<OpCase<LinearCrossEntropy>> cases() {
  std::vector<OpCase<LinearCrossEntropy>> list;
  for (const auto& [name, setting] : kSettings)
    list.push_back({.name = name,
                    .inputs = [setting = setting](Context& ctx, Random& random) { return inputs_of(ctx, random, setting); },
                    .attrs = setting.attrs,
                    .gradcheck = setting.N * setting.D + setting.V * setting.D < 20000});
  return list;
}
const bool kLaws = register_laws<LinearCrossEntropy>("LinearCrossEntropy", cases());

#ifdef BRAID_WITH_CUDA
/// Gradients of the loss where none comes to the tokens' own losses: on a GPU they are made in forward.
LinearCrossEntropy::Inputs gradients_of_loss(Context& ctx, LinearCrossEntropy::Inputs in, const LinearCrossEntropy::Attrs& attrs) {
  Tape tape;
  WithTape recording(ctx, &tape);
  in.x = tape.leaf(in.x);
  in.weight = tape.leaf(in.weight);
  const Tensor loss = apply<LinearCrossEntropy>(ctx, in, attrs).loss;
  tape.backward(ctx, loss, converted(ctx, from_vector<float>(ctx, {1.7f}, {}), loss.dtype()));
  return {tape.grad(in.x), tape.grad(in.weight), {}};
}

void law_loss_alone(const Setting& setting, DType dtype) {
  if (cuda::num_devices() == 0) GTEST_SKIP() << "no GPU";
  const int64_t damaged_before = num_damaged_storages();
  {
    Context host(0), gpu = cuda::make_context();
    gpu.guarded_allocations = true;
    Random random(7);
    const LinearCrossEntropy::Inputs rounded = in_dtype<LinearCrossEntropy>(host, inputs_of(host, random, setting), dtype, {});
    const auto oracle = gradients_of_loss(host, in_dtype<LinearCrossEntropy>(host, rounded, DType::f64, {}), setting.attrs);
    const auto in = on_device(gpu, rounded);
    const auto gradients = gradients_of_loss(gpu, in, setting.attrs), again = gradients_of_loss(gpu, in, setting.attrs);
    expect_close_on_cuda(gpu, gradients, oracle, dtype, true);
    EXPECT_TRUE(same_bits(gpu, gradients.x, again.x) && same_bits(gpu, gradients.weight, again.weight));
  }
  EXPECT_EQ(num_damaged_storages(), damaged_before) << "bytes outside an allocation were written";
}

const bool kLossAlone = [] {
  for (const auto& [name, setting] : kSettings)
    for (DType dtype : {DType::f32, DType::bf16})
      register_law("LinearCrossEntropy", name + "_loss_alone_cuda_" + std::string(to_string(dtype)),
                   [setting = setting, dtype] { law_loss_alone(setting, dtype); });
  return true;
}();
#endif

/// All logits of one token.
std::vector<double> logits_of(const LinearCrossEntropy::Inputs& in, int64_t n) {
  const int64_t D = in.x.size(1), V = in.weight.size(0);
  std::vector<double> logits(V);
  for (int64_t v = 0; v < V; ++v)
    for (int64_t d = 0; d < D; ++d) logits[v] += in.weight.data<double>()[v * D + d] * in.x.data<double>()[n * D + d];
  return logits;
}

TEST(LinearCrossEntropy, IsTheDefinition) {
  Context ctx(2);
  for (const auto& [name, setting] : kSettings) {
    for (double scale : {1.0, 5.0}) {
      Random random(11);
      const LinearCrossEntropy::Inputs in = inputs_of(ctx, random, setting, scale);
      LinearCrossEntropy::Attrs attrs = setting.attrs;
      attrs.predict = true;
      const LinearCrossEntropy::Outputs out = apply<LinearCrossEntropy>(ctx, in, attrs);
      double sum = 0, num_targets = 0;
      for (int64_t n = 0; n < setting.N; ++n) {
        const std::vector<double> logits = logits_of(in, n);
        const auto highest = std::max_element(logits.begin(), logits.end());
        double total = 0;
        for (double logit : logits) total += std::exp(logit - *highest);
        const int64_t target = in.targets.data<int64_t>()[n];
        const double loss = target < 0 ? 0 : *highest + std::log(total) - logits[target];
        EXPECT_NEAR(out.token_loss.data<double>()[n], loss, 1e-11) << name;
        EXPECT_EQ(out.prediction.data<int64_t>()[n], highest - logits.begin()) << name;
        sum += loss, num_targets += target >= 0;
      }
      const double denominator = attrs.denominator > 0 ? attrs.denominator : std::max(1.0, num_targets);
      EXPECT_NEAR(item(ctx, out.loss), sum / denominator, 1e-11) << name;
    }
  }
}

TEST(LinearCrossEntropy, WithoutTargetsLossAndGradientsAreZero) {
  Context ctx;
  Random random(3);
  const OpRun<LinearCrossEntropy> run = run_op<LinearCrossEntropy>(ctx, inputs_of(ctx, random, {5, 4, 6, 0}), {});
  EXPECT_EQ(item(ctx, run.out.loss), 0);
  EXPECT_FALSE(run.out.prediction.defined());
  EXPECT_EQ(to_vector<double>(ctx, run.d_in.x), std::vector<double>(20));
  EXPECT_EQ(to_vector<double>(ctx, run.d_in.weight), std::vector<double>(24));
}

TEST(LinearCrossEntropy, HugeLogitsGiveExactLosses) {
  Context ctx;
  for (DType dtype : {DType::f64, DType::f32}) {
    const Tensor x = converted(ctx, from_vector<double>(ctx, {1e4, -1e4, 1e4}, {3, 1}), dtype);
    const Tensor weight = converted(ctx, from_vector<double>(ctx, {1, -1, 0}, {3, 1}), dtype);
    const OpRun<LinearCrossEntropy> run = run_op<LinearCrossEntropy>(ctx, {x, weight, from_vector<int64_t>(ctx, {0, 0, 2}, {3})}, {.predict = true});
    EXPECT_EQ(to_vector<double>(ctx, run.out.token_loss), (std::vector<double>{0, 2e4, 1e4}));
    EXPECT_EQ(to_vector<int64_t>(ctx, run.out.prediction), (std::vector<int64_t>{0, 1, 0}));
    EXPECT_TRUE(all_finite(ctx, run.d_in.x) && all_finite(ctx, run.d_in.weight));
  }
}

TEST(LinearCrossEntropy, EqualLogitsPredictTheSmallest) {
  Context ctx;
  const Tensor x = from_vector<double>(ctx, {1, 0}, {2, 1}), weight = from_vector<double>(ctx, {-1, 2, 2, 2}, {4, 1});
  const LinearCrossEntropy::Outputs out = apply<LinearCrossEntropy>(ctx, {x, weight, from_vector<int64_t>(ctx, {-1, -1}, {2})}, {.predict = true});
  EXPECT_EQ(to_vector<int64_t>(ctx, out.prediction), (std::vector<int64_t>{1, 0}));
}

TEST(LinearCrossEntropy, NaNIsNotHidden) {
  Context ctx;
  Random random(3);
  const LinearCrossEntropy::Inputs in = inputs_of(ctx, random, {3, 4, 20, 1});
  in.weight.data<double>()[((in.targets.data<int64_t>()[0] + 1) % 20) * 4] = std::numeric_limits<double>::quiet_NaN();
  EXPECT_TRUE(std::isnan(item(ctx, apply<LinearCrossEntropy>(ctx, in, {.predict = true}).loss)));
}

TEST(LinearCrossEntropy, AddsToTheGivenWeightGradient) {
  Context ctx;
  Random random(3);
  const LinearCrossEntropy::Inputs in = inputs_of(ctx, random, {9, 4, 6, 1});
  const Tensor fresh = Tensor::zeros(ctx, {6, 4}, DType::f64), given = Tensor::zeros(ctx, {6, 4}, DType::f64);
  for (int i = 0; i < 24; ++i) given.data<double>()[i] = i;
  for (const Tensor& grad : {fresh, given}) {
    Tape tape;
    WithTape recording(ctx, &tape);
    tape.backward(ctx, apply<LinearCrossEntropy>(ctx, {in.x, tape.leaf(in.weight, grad), in.targets}).loss);
  }
  for (int i = 0; i < 24; ++i) EXPECT_NEAR(given.data<double>()[i] - i, fresh.data<double>()[i], 1e-13);
}

TEST(LinearCrossEntropy, NeverHoldsAllLogits) {
  Context ctx(2);
  Random random(3);
  const int64_t N = 6000, D = 2, V = 24000;  // all logits: 576 MB in f32; a block: 8 MB
  std::vector<int64_t> targets(N);
  for (int64_t n = 0; n < N; ++n) targets[n] = n;
  const auto peak_bytes = [] {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    return static_cast<int64_t>(usage.ru_maxrss) * 1024;
  };
  const LinearCrossEntropy::Inputs in{converted(ctx, normal(ctx, random, {N, D}), DType::f32),
                                      converted(ctx, normal(ctx, random, {V, D}), DType::f32), from_vector(ctx, targets, {N})};
  const int64_t before = peak_bytes();
  run_op<LinearCrossEntropy>(ctx, in, {});
  EXPECT_LE(peak_bytes() - before, int64_t{200} << 20);
}

TEST(LinearCrossEntropy, SaysWhatIsWrong) {
  Context ctx;
  Random random(3);
  const Tensor x = normal(ctx, random, {2, 3}), weight = normal(ctx, random, {5, 3});
  const auto refusal = [&](const Tensor& w, std::vector<int64_t> targets, const LinearCrossEntropy::Attrs& attrs = {}) -> std::string {
    const int64_t N = static_cast<int64_t>(targets.size());
    try {
      apply<LinearCrossEntropy>(ctx, {x, w, from_vector(ctx, targets, {N})}, attrs);
    } catch (const Error& error) {
      return error.what();
    }
    return "accepted";
  };
  EXPECT_EQ(refusal(weight, {0, 5}), "linear_cross_entropy: target 5 at index 1 is outside the vocabulary of 5 (-1: no target)");
  EXPECT_EQ(refusal(weight, {-2, 0}), "linear_cross_entropy: target -2 at index 0 is outside the vocabulary of 5 (-1: no target)");
  EXPECT_EQ(refusal(weight, {0}), "linear_cross_entropy: targets must be i64 [N = 2], got i64 [1]");
  EXPECT_EQ(refusal(normal(ctx, random, {5, 4}), {0, 1}), "linear_cross_entropy: weight must be f64 [V, D = 3], got f64 [5, 4]");
  EXPECT_EQ(refusal(weight, {0, 1}, {.denominator = -1}), "linear_cross_entropy: denominator must not be negative, got -1");
  EXPECT_EQ(refusal(weight, {0, 1}, {.block_tokens = -4}), "linear_cross_entropy: block_tokens must not be negative, got -4");
  EXPECT_EQ(refusal(weight, {4, -1}), "accepted");
}

}  // namespace
}  // namespace braid::testing
