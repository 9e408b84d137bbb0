// What kernels are not built for is an error in one line that names the operator, the limit and what was given (design: quality, law 9), with a
// tape and without; the largest that they are built for is right.
#include "ops/attention.h"
#include "ops/gated_rms_norm.h"
#include "ops/l2_norm.h"
#include "ops/recurrence/gated_delta_rule.h"
#include "ops/recurrence/gated_linear_attention.h"
#include "ops/recurrence/linear_recurrence.h"
#include "ops/rms_norm.h"
#include "ops/short_conv.h"
#include "tests/support/cuda_laws.h"

namespace braid::testing {
namespace {

constexpr int64_t kTokens = 20;

class CudaRefusals : public ::testing::TestWithParam<DType> {
 protected:
  void SetUp() override {
    if (cuda::num_devices() == 0) GTEST_SKIP() << "no GPU";
    gpu.emplace(cuda::make_context());
  }
  Tensor zeros(const Shape& shape) { return Tensor::zeros(*gpu, shape, GetParam()); }
  Tensor wide_zeros(const Shape& shape) { return Tensor::zeros(*gpu, shape, accumulator(GetParam())); }

  template <class Op>
  void expect_refusal(const typename Op::Inputs& in, const typename Op::Attrs& attrs, const std::string& message) {
    Tape tape;
    for (const bool records : {true, false}) {
      WithTape recording(*gpu, records ? &tape : nullptr);
      typename Op::Inputs given = in;
      if (records)
        for (Tensor* tensor : tensors_of(given))
          if (*tensor) *tensor = tape.leaf(*tensor);
      try {
        apply<Op>(*gpu, given, attrs);
        ADD_FAILURE() << "accepted" << (records ? " with a tape" : "") << "; expected: " << message;
      } catch (const Error& error) {
        EXPECT_EQ(error.what(), std::string(Op::name) + ": " + message);
      }
      gpu->synchronize();  // no kernel had begun that could fail
    }
  }
  std::optional<Context> gpu;
};

TEST_P(CudaRefusals, GatedLinearAttention) {
  const GatedLinearAttention::Attrs attrs{.seqs = Sequences::single(kTokens), .scale = {}};
  const auto of = [&](int64_t N, int64_t H, int64_t K) {
    return GatedLinearAttention::Inputs{zeros({N, H, K}), zeros({N, H, K}), zeros({N, H, 8}), zeros({N, H, K}), {}};
  };
  expect_refusal<GatedLinearAttention>(of(kTokens, 1, 513), attrs, "on a GPU K must be at most 512, got 513");
  expect_refusal<GatedLinearAttention>(of(kTokens, 2, 1024), attrs, "on a GPU K must be at most 512, got 1024");
  expect_refusal<GatedLinearAttention>(of(kTokens, 65536, 1), attrs, "on a GPU H must be at most 65535, got 65536");
  // One token a sequence has a kernel of its own, for fewer keys.
  expect_refusal<GatedLinearAttention>(of(2, 1, 513), {.seqs = Sequences::of_lengths({1, 1}), .scale = {}},
                                       "on a GPU K must be at most 512, got 513");
}

TEST_P(CudaRefusals, GatedDeltaRule) {
  const std::string message = "on a GPU q must have at most 1024 channels, got K = 1025";
  const auto of = [&](int64_t N) {
    return GatedDeltaRule::Inputs{zeros({N, 1, 1025}), zeros({N, 1, 1025}), zeros({N, 2, 64}), zeros({N, 2}), zeros({N, 2}), {}};
  };
  expect_refusal<GatedDeltaRule>(of(kTokens), {.seqs = Sequences::single(kTokens), .scale = {}, .qk_l2norm = true}, message);
  expect_refusal<GatedDeltaRule>(of(2), {.seqs = Sequences::of_lengths({1, 1}), .scale = {}}, message);
}

TEST_P(CudaRefusals, Attention) {
  const Attention::Attrs attrs{.q_seqs = Sequences::single(kTokens)};
  const auto of = [&](int64_t D, int64_t DV) { return Attention::Inputs{zeros({kTokens, 2, D}), zeros({kTokens, 1, D}), zeros({kTokens, 1, DV})}; };
  expect_refusal<Attention>(of(257, 257), attrs, "on a GPU head dimensions must be at most 256, got D = 257 and DV = 257");
  expect_refusal<Attention>(of(64, 320), attrs, "on a GPU head dimensions must be at most 256, got D = 64 and DV = 320");
}

TEST_P(CudaRefusals, Norms) {
  for (const int64_t D : {8193, 8200, 16384}) {
    const Tensor x = zeros({3, D}), weight = wide_zeros({D});
    const std::string message = "on a GPU rows have at most 8192 elements, got " + std::to_string(D);
    expect_refusal<RmsNorm>({x, weight, {}}, {}, message);
    expect_refusal<RmsNorm>({x, weight, x}, {}, message);
    expect_refusal<GatedRmsNorm>({x, x, weight}, {}, message);
    expect_refusal<L2Norm>({x}, {}, message);
  }
}

TEST_P(CudaRefusals, ShortConv) {
  const ShortConv::Attrs attrs{.seqs = Sequences::single(kTokens), .activation = ConvActivation::silu};
  for (const int64_t D : {6, 64})
    expect_refusal<ShortConv>({zeros({kTokens, D}), wide_zeros({D, 17}), {}}, attrs,
                              "on a GPU weight has a width W of at most 16, got [" + std::to_string(D) + ", 17]");
}

INSTANTIATE_TEST_SUITE_P(DTypes, CudaRefusals, ::testing::Values(DType::bf16, DType::f32),
                         [](const auto& info) { return std::string(info.param == DType::bf16 ? "bf16" : "f32"); });

/// Float64 is the oracle's, which has no kernels.
class CudaRefusalsOfFloat64 : public CudaRefusals {};

TEST_P(CudaRefusalsOfFloat64, NameTheTypes) {
  const std::string message = "on a GPU expected bf16 or f32, got f64";
  const Tensor qk = zeros({kTokens, 2, 16}), rows = zeros({kTokens, 16}), gates = zeros({kTokens, 2});
  const Sequences seqs = Sequences::single(kTokens);
  expect_refusal<GatedLinearAttention>({qk, qk, qk, {}, {}}, {.seqs = seqs, .scale = {}}, message);
  expect_refusal<GatedDeltaRule>({qk, qk, qk, gates, {}, {}}, {.seqs = seqs, .scale = {}}, message);
  expect_refusal<LinearRecurrence>({rows, rows, {}}, {.seqs = seqs}, message);
  expect_refusal<Attention>({qk, qk, qk}, {.q_seqs = seqs}, message);
  expect_refusal<RmsNorm>({rows, zeros({16}), {}}, {}, message);
  expect_refusal<GatedRmsNorm>({rows, rows, zeros({16})}, {}, message);
  expect_refusal<L2Norm>({rows}, {}, message);
  expect_refusal<ShortConv>({rows, zeros({16, 4}), {}}, {.seqs = seqs}, message);
}

INSTANTIATE_TEST_SUITE_P(DTypes, CudaRefusalsOfFloat64, ::testing::Values(DType::f64));

/// As many channels of q as the delta rule takes; the other limits are among the cases of their operators.
TEST(CudaLimits, MostChannelsOfTheDeltaRule) {
  const Sequences seqs = Sequences::of_lengths({18, 0, 5});
  for (const bool per_channel : {false, true}) {
    const auto inputs = [&](Context& ctx, Random& random) {
      constexpr int64_t N = 23, K = 1024, V = 40;
      return GatedDeltaRule::Inputs{normal(ctx, random, {N, 1, K}),
                                    normal(ctx, random, {N, 1, K}),
                                    normal(ctx, random, {N, 2, V}),
                                    uniform(ctx, random, {N, 2}, 0, 1),
                                    uniform(ctx, random, per_channel ? Shape{N, 2, K} : Shape{N, 2}, -0.2, 0),
                                    normal(ctx, random, {seqs.count(), 2, K, V})};
    };
    for (const DType dtype : {DType::bf16, DType::f32})
      law_cuda<GatedDeltaRule>({.name = "case", .inputs = inputs, .attrs = {.seqs = seqs, .scale = {}, .qk_l2norm = true}},
                               {.accumulator = {"beta", "log_decay", "initial_state"}}, dtype);
  }
}

}  // namespace
}  // namespace braid::testing
