// AdamW's kernels against its CPU form, on the same parameters and gradients. Skipped on a machine without a GPU.
#ifdef BRAID_WITH_CUDA
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <memory>
#include <optional>

#include "cuda/runtime/runtime.h"
#include "tests/train/tiny_model.h"
#include "train/optimizer.h"

namespace braid::testing {
namespace {

/// One model on two devices, with the same gradients. 131 × 257 elements: more than two pieces, the last of them no multiple of four.
class AdamWOnCuda : public ::testing::Test {
 protected:
  void SetUp() override {
    if (cuda::num_devices() == 0) GTEST_SKIP() << "no GPU";
    gpu_.emplace(cuda::make_context());
    gpu_->guarded_allocations = true;
    on_cpu_ = std::make_unique<TinyModel>(host_, 131, 257);
    on_gpu_ = std::make_unique<TinyModel>(*gpu_, 131, 257);
  }

  /// Gradients of every size, some of them zero.
  void fill_grads(uint64_t seed) {
    zero_grads(host_, *on_cpu_);
    zero_grads(*gpu_, *on_gpu_);
    Random random(seed);
    const auto targets = on_gpu_->parameters();
    for (size_t i = 0; i < targets.size(); ++i) {
      const Parameter& parameter = *on_cpu_->parameters()[i];
      std::vector<float> values(parameter.value.numel());
      for (size_t j = 0; j < values.size(); ++j)
        values[j] = j % 7 == 0 ? 0.0f : static_cast<float>(random.normal() * std::exp(random.uniform(-12, 2)));
      copy_into(host_, parameter.grad, from_vector(host_, values, parameter.shape));
      copy_into(*gpu_, targets[i]->grad, parameter.grad);
    }
    gpu_->synchronize();
  }

  /// `least` is what is lost where terms cancel.
  void expect_close(const Tensor& actual, const Tensor& expected, float least, const std::string& what) {
    const std::vector<float> a = to_vector<float>(*gpu_, actual), b = to_vector<float>(host_, expected);
    ASSERT_EQ(a.size(), b.size());
    for (size_t i = 0; i < a.size(); ++i)
      ASSERT_LE(std::abs(a[i] - b[i]), 2e-6f * std::abs(b[i]) + least) << what << ", element " << i << " of " << b.size();
  }

  Context host_{2};
  std::optional<Context> gpu_;
  std::unique_ptr<TinyModel> on_cpu_, on_gpu_;
};

TEST_F(AdamWOnCuda, FollowsTheCpu) {
  set_compute_dtype(host_, *on_cpu_, DType::bf16);
  set_compute_dtype(*gpu_, *on_gpu_, DType::bf16);
  AdamW cpu(host_, on_cpu_->parameters(), {}), gpu(*gpu_, on_gpu_->parameters(), {});
  for (int step = 0; step < 4; ++step) {
    fill_grads(10 + step);
    const double norm = cpu.gradient_norm(host_), norm_on_gpu = gpu.gradient_norm(*gpu_);
    EXPECT_NEAR(norm_on_gpu, norm, 1e-12 * norm);
    cpu.step(host_, 0.01 * (step + 1), clip_scale(norm, 1));
    gpu.step(*gpu_, 0.01 * (step + 1), clip_scale(norm_on_gpu, 1));
    for (size_t i = 0; i < cpu.slots().size(); ++i) {
      const OptimizerSlot &expected = cpu.slots()[i], &actual = gpu.slots()[i];
      const std::string name = expected.parameter->name + " after step " + std::to_string(step);
      expect_close(actual.m, expected.m, 1e-9f, "m of " + name);
      expect_close(actual.v, expected.v, 1e-30f, "v of " + name);
      expect_close(actual.parameter->value, expected.parameter->value, 3e-8f, name);
      if (!actual.parameter->compute) continue;
      const Tensor rounded = converted(*gpu_, actual.parameter->value, DType::bf16);
      EXPECT_EQ(to_vector<float>(*gpu_, actual.parameter->compute), to_vector<float>(*gpu_, rounded)) << name;
    }
  }
}

TEST_F(AdamWOnCuda, NormIsOfAllGradientsAndTheSameEveryTime) {
  AdamW optimizer(*gpu_, on_gpu_->parameters(), {});
  zero_grads(*gpu_, *on_gpu_);
  EXPECT_EQ(optimizer.gradient_norm(*gpu_), 0);
  fill_grads(3);
  const double norm = optimizer.gradient_norm(*gpu_);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(optimizer.gradient_norm(*gpu_), norm);
  for (float bad : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    const Tensor& grad = on_gpu_->parameters().back()->grad;
    copy_into(*gpu_, grad.view({grad.numel()}).slice(0, grad.numel() - 1, grad.numel()), from_vector<float>(host_, {bad}, {1}));
    EXPECT_FALSE(std::isfinite(optimizer.gradient_norm(*gpu_)));
  }
}

}  // namespace
}  // namespace braid::testing
#endif
