// A model of each family trained on the GPU follows the same model trained on the CPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <thread>

#include "cuda/runtime/runtime.h"
#include "io/file.h"
#include "tests/cuda/families.h"
#include "tests/train/tiny_model.h"
#include "train/data_loader.h"
#include "train/trainer.h"

namespace braid::testing {
namespace {

constexpr int64_t kSteps = 50, kVocab = kFamilyVocab, kContext = 256;

/// Documents of many lengths in which a token mostly follows from the one before it, so that there is something to learn.
std::shared_ptr<const TokenSource> documents() {
  Random random(11);
  std::vector<std::vector<int64_t>> result;
  for (int64_t i = 0; i < 60; ++i) {
    std::vector<int64_t> document = {static_cast<int64_t>(random.below(kVocab))};
    for (int64_t length = 1 + static_cast<int64_t>(random.below(700)); length > 0; --length) {
      const int64_t next = (3 * document.back() + 5) % kVocab;
      document.push_back(random.uniform() < 0.9 ? next : static_cast<int64_t>(random.below(kVocab)));
    }
    result.push_back(std::move(document));
  }
  return make_token_source(result);
}

std::vector<double> losses(Context& ctx, const ModelConfig& config, DType dtype, RecomputeLevel recompute = RecomputeLevel::none) {
  HybridLm model(config);
  initialize(ctx, model, DType::f32, config.initializer_range, 1);
  DataLoader data({{documents()}}, {.batch_tokens = 512, .context = kContext, .seed = 2, .share = {.num_micro_batches = 2}});
  TrainOptions options;
  options.schedule = {.kind = ScheduleKind::cosine, .peak = 3e-4, .steps = kSteps, .warmup = 5};
  options.compute_dtype = dtype;
  options.recompute = recompute;
  Trainer trainer(ctx, model, score_with(model), data, options);
  std::vector<double> result;
  while (!trainer.finished()) result.push_back(trainer.step().loss);
  return result;
}

double worst(const std::vector<double>& a, const std::vector<double>& b) {
  double error = 0;
  for (size_t i = 0; i < a.size(); ++i) error = std::isfinite(a[i]) ? std::max(error, std::abs(a[i] - b[i]) / b[i]) : INFINITY;
  return error;
}

class CudaTraining : public ::testing::TestWithParam<std::string> {};

TEST_P(CudaTraining, FollowsTheCpu) {
  if (cuda::num_devices() == 0) GTEST_SKIP() << "no GPU";
  for (bool hybrid : {false, true}) {
    if (hybrid && GetParam() == "transformer") continue;
    SCOPED_TRACE(hybrid ? "one layer of full attention" : "pure");
    const ModelConfig config = config_of(GetParam(), hybrid);
    Context host(0), gpu = cuda::make_context();
    const std::vector<double> expected = losses(host, config, DType::f32), single = losses(gpu, config, DType::f32),
                              half = losses(gpu, config, DType::bf16);
    EXPECT_LT(expected.back(), expected.front() - 0.3) << "there was nothing to follow";
    EXPECT_LE(worst(single, expected), 1e-4) << "float32";
    EXPECT_LE(worst(half, expected), 0.02) << "bf16";
    EXPECT_EQ(losses(gpu, config, DType::bf16), half) << "twice the same";
    for (RecomputeLevel level : {RecomputeLevel::mlp, RecomputeLevel::block})
      EXPECT_EQ(losses(gpu, config, DType::bf16, level), half) << "with recompute";
    std::printf("%s%s: loss %.4f to %.4f; worst error f32 %.1e, bf16 %.1e\n", GetParam().c_str(), hybrid ? " hybrid" : "", expected.front(),
                expected.back(), worst(single, expected), worst(half, expected));
  }
}

INSTANTIATE_TEST_SUITE_P(Families, CudaTraining, ::testing::ValuesIn(kFamilyNames), [](const auto& info) { return info.param; });

/// A trainer on the GPU whose loss is infinite in the steps that `broken` names.
struct GpuRun {
  explicit GpuRun(Context& ctx, std::vector<int64_t> broken = {})
      : model(config_of("gdn", true)), data({{documents()}}, {.batch_tokens = 512, .context = kContext, .seed = 2, .share = {}}) {
    initialize(ctx, model, DType::f32, 0.02, 1);
    TrainOptions options;
    options.schedule = {.kind = ScheduleKind::cosine, .peak = 5e-4, .steps = 8, .warmup = 2};
    options.compute_dtype = DType::bf16;
    options.max_skipped_in_row = 2;
    const ScoreFunction plain = score_with(model);
    trainer.emplace(
        ctx, model,
        [this, plain, broken](Context& context, const Batch& batch, const LossOptions& given) {
          LossOptions changed = given;
          if (std::find(broken.begin(), broken.end(), call++) != broken.end()) changed.denominator = 1e-45;
          return plain(context, batch, changed);
        },
        data, options);
  }
  std::vector<double> values(Context& ctx) const {
    std::vector<double> all;
    for (const Parameter* parameter : model.parameters())
      for (double value : to_vector<double>(ctx, parameter->value)) all.push_back(value);
    return all;
  }
  HybridLm model;
  DataLoader data;
  int64_t call = 0;
  std::optional<Trainer> trainer;
};

TEST(CudaTrainer, AStepThatIsNotFiniteChangesNothingAndIsCounted) {
  if (cuda::num_devices() == 0) GTEST_SKIP() << "no GPU";
  Context gpu = cuda::make_context();
  GpuRun run(gpu, {3, 5, 6});
  for (int i = 0; i < 3; ++i) EXPECT_FALSE(run.trainer->step().skipped);
  const std::vector<double> before = run.values(gpu);
  EXPECT_TRUE(run.trainer->step().skipped);
  EXPECT_EQ(run.values(gpu), before);
  EXPECT_FALSE(run.trainer->step().skipped);
  EXPECT_NE(run.values(gpu), before);
  EXPECT_EQ(run.trainer->optimizer().num_updates(), 4);
  EXPECT_TRUE(run.trainer->step().skipped);
  EXPECT_THROW(run.trainer->step(), Error) << "two in a row";
}

TEST(CudaTrainer, OneStepAheadIsTheSameRun) {
  if (cuda::num_devices() == 0) GTEST_SKIP() << "no GPU";
  Context gpu = cuda::make_context();
  GpuRun one_by_one(gpu), ahead(gpu);
  std::vector<double> losses_of_one, losses_of_other;
  while (!one_by_one.trainer->finished()) losses_of_one.push_back(one_by_one.trainer->step().loss);
  EXPECT_EQ(ahead.trainer->steps_ahead(), 1);
  while (!ahead.trainer->finished()) {
    ahead.trainer->start_step();
    if (ahead.trainer->steps_started() > 1) losses_of_other.push_back(ahead.trainer->finish_step().loss);
  }
  EXPECT_THROW(ahead.trainer->checkpoint("{}"), Error) << "a step is in flight";
  losses_of_other.push_back(ahead.trainer->finish_step().loss);
  EXPECT_EQ(losses_of_one, losses_of_other);
  EXPECT_EQ(one_by_one.values(gpu), ahead.values(gpu));
}

/// A step that is waited for late (the next one's launches go first) took no longer, and the one after it not less.
TEST(CudaTrainer, AStepsTimeIsItsOwn) {
  if (cuda::num_devices() == 0) GTEST_SKIP() << "no GPU";
  Context gpu = cuda::make_context();
  GpuRun run(gpu);
  run.trainer->step();  // loads the kernels
  std::vector<double> seconds;
  double total = 0;
  const auto finish = [&] {
    const StepReport report = run.trainer->finish_step();
    seconds.push_back(512 / report.tokens_per_s);
    total += seconds.back();
    EXPECT_GT(seconds.back(), 1e-5);
  };
  const auto start = std::chrono::steady_clock::now();
  run.trainer->start_step();
  while (!run.trainer->finished()) {
    run.trainer->start_step();
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    finish();
  }
  finish();
  const double wall = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  EXPECT_GT(wall, 0.6);
  EXPECT_LT(total, wall - 0.4);
  EXPECT_LT(*std::max_element(seconds.begin(), seconds.end()), 0.09);
}

TEST(CudaTrainer, ResumesToTheSameBits) {
  if (cuda::num_devices() == 0) GTEST_SKIP() << "no GPU";
  Context gpu = cuda::make_context();
  const TemporaryDirectory directory;
  GpuRun whole(gpu), first(gpu), second(gpu);
  while (!whole.trainer->finished()) whole.trainer->step();
  for (int i = 0; i < 3; ++i) first.trainer->step();
  make_directories(directory.path() / "checkpoints");
  second.trainer->restore(CheckpointReader(write_checkpoint(gpu, directory.path(), first.trainer->checkpoint("{}"))));
  while (!second.trainer->finished()) second.trainer->step();
  EXPECT_EQ(whole.values(gpu), second.values(gpu));
}

}  // namespace
}  // namespace braid::testing
