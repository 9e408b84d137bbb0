// The laws of the recurrences' kernels at every shape they are built for (design: kernels, "Shapes that must be fast"), in bf16: packs of few
// long sequences and of many short ones, because kernels cut the former and not the latter; and a member of 100,000 tokens in a pack.
#include "ops/attention.h"
#include "ops/recurrence/gated_delta_rule.h"
#include "ops/recurrence/gated_linear_attention.h"
#include "ops/recurrence/linear_recurrence.h"
#include "tests/support/cuda_laws.h"

namespace braid::testing {
namespace {

enum class Decay : uint8_t { absent, constant, head, channel };

struct Problem {
  std::string name;
  int64_t H, HV, K, V;
  Decay decay;
};

std::string name_of(const ::testing::TestParamInfo<Problem>& info) { return info.param.name; }

Problem problem(Decay decay, int64_t H, int64_t HV, int64_t K, int64_t V) {
  const char* const names[] = {"absent", "constant", "head", "channel"};
  std::string name = names[static_cast<int>(decay)];
  for (const int64_t value : {H, HV, K, V}) name += "_" + std::to_string(value);
  return {std::move(name), H, HV, K, V, decay};
}

/// The shape with as few heads as keep its groups: one key head.
Problem narrow(Problem x) {
  x.HV /= x.H;
  x.H = 1;
  return x;
}

const std::vector<int64_t> kLong = {5, 0, 1500, 1};
const std::vector<int64_t> kShort = {63, 64, 65, 1, 0, 130, 20, 128, 7, 200, 1, 90, 64, 33, 191, 2, 100, 0, 65, 127, 16, 48, 129, 80};

Tensor decays(Context& ctx, Random& random, const Problem& x, int64_t N) {
  if (x.decay == Decay::constant) return uniform(ctx, random, {x.HV}, -0.05, -0.01);
  if (x.decay == Decay::head) return uniform(ctx, random, {N, x.HV}, -0.2, 0);
  if (x.decay == Decay::channel) return uniform(ctx, random, {N, x.HV, x.K}, -0.2, 0);
  return {};
}

void expect_laws_of_linear_attention(const Problem& x, const std::vector<int64_t>& lengths, DType dtype = DType::bf16) {
  const Sequences seqs = Sequences::of_lengths(lengths);
  const auto inputs = [&](Context& ctx, Random& random) {
    const int64_t N = seqs.num_tokens();
    return GatedLinearAttention::Inputs{normal(ctx, random, {N, x.H, x.K}), normal(ctx, random, {N, x.H, x.K}), normal(ctx, random, {N, x.H, x.V}),
                                        decays(ctx, random, x, N), normal(ctx, random, {seqs.count(), x.H, x.K, x.V})};
  };
  law_cuda<GatedLinearAttention>({.name = "case", .inputs = inputs, .attrs = {.seqs = seqs, .scale = {}}},
                                 {.accumulator = {"log_decay", "initial_state"}}, dtype);
}

void expect_laws_of_delta_rule(const Problem& x, const std::vector<int64_t>& lengths, DType dtype = DType::bf16) {
  const Sequences seqs = Sequences::of_lengths(lengths);
  const auto inputs = [&](Context& ctx, Random& random) {
    const int64_t N = seqs.num_tokens();
    return GatedDeltaRule::Inputs{normal(ctx, random, {N, x.H, x.K}),  normal(ctx, random, {N, x.H, x.K}),
                                  normal(ctx, random, {N, x.HV, x.V}), uniform(ctx, random, {N, x.HV}, 0, 1),
                                  decays(ctx, random, x, N),           normal(ctx, random, {seqs.count(), x.HV, x.K, x.V})};
  };
  law_cuda<GatedDeltaRule>({.name = "case", .inputs = inputs, .attrs = {.seqs = seqs, .scale = {}, .qk_l2norm = true}},
                           {.accumulator = {"beta", "log_decay", "initial_state"}}, dtype);
}

class LinearAttentionShapes : public ::testing::TestWithParam<Problem> {};
class DeltaRuleShapes : public ::testing::TestWithParam<Problem> {};

TEST_P(LinearAttentionShapes, FewLongSequences) { expect_laws_of_linear_attention(narrow(GetParam()), kLong); }
TEST_P(LinearAttentionShapes, ManyShortSequences) { expect_laws_of_linear_attention(GetParam(), kShort); }
TEST_P(DeltaRuleShapes, FewLongSequences) { expect_laws_of_delta_rule(narrow(GetParam()), kLong); }
TEST_P(DeltaRuleShapes, ManyShortSequences) { expect_laws_of_delta_rule(GetParam(), kShort); }

TEST_P(LinearAttentionShapes, Float32) { expect_laws_of_linear_attention(narrow(GetParam()), kLong, DType::f32); }
TEST_P(DeltaRuleShapes, Float32) { expect_laws_of_delta_rule(narrow(GetParam()), kLong, DType::f32); }

void expect_laws_of_linear_recurrence(int64_t D, const std::vector<int64_t>& lengths, DType dtype) {
  const Sequences seqs = Sequences::of_lengths(lengths);
  const auto inputs = [&](Context& ctx, Random& random) {
    const int64_t N = seqs.num_tokens();
    return LinearRecurrence::Inputs{normal(ctx, random, {N, D}), uniform(ctx, random, {N, D}, -0.5, 0), normal(ctx, random, {seqs.count(), D})};
  };
  law_cuda<LinearRecurrence>({.name = "case", .inputs = inputs, .attrs = {.seqs = seqs}}, {.accumulator = {"log_decay", "initial_state"}}, dtype);
}

TEST(LinearRecurrenceShapes, LongAndShortSequences) {
  for (const int64_t D : {1024, 2048})
    for (const auto& lengths : {kLong, kShort})
      for (const DType dtype : {DType::bf16, DType::f32}) {
        SCOPED_TRACE(::testing::Message() << "D " << D << " " << to_string(dtype));
        expect_laws_of_linear_recurrence(D, lengths, dtype);
      }
}

void expect_laws_of_attention(int64_t H, int64_t HK, int64_t D, int64_t window, const std::vector<int64_t>& lengths, DType dtype) {
  const Sequences seqs = Sequences::of_lengths(lengths);
  const auto inputs = [&](Context& ctx, Random& random) {
    const int64_t N = seqs.num_tokens();
    return Attention::Inputs{normal(ctx, random, {N, H, D}), normal(ctx, random, {N, HK, D}), normal(ctx, random, {N, HK, D})};
  };
  law_cuda<Attention>({.name = "case", .inputs = inputs, .attrs = {.q_seqs = seqs, .window = window}}, {}, dtype);
}

TEST(AttentionShapes, LongAndShortSequences) {
  for (const int64_t D : {64, 128, 256})
    for (const DType dtype : {DType::bf16, DType::f32}) {
      SCOPED_TRACE(::testing::Message() << "D " << D << " " << to_string(dtype));
      expect_laws_of_attention(2048 / D, 2048 / D, D, 0, kShort, dtype);
      expect_laws_of_attention(2048 / D, 512 / D, D, 100, kShort, dtype);
      expect_laws_of_attention(2, 1, D, 0, kLong, dtype);
    }
}

using enum Decay;

INSTANTIATE_TEST_SUITE_P(BuiltShapes, LinearAttentionShapes,
                         ::testing::Values(problem(absent, 16, 16, 64, 64), problem(constant, 8, 8, 256, 512), problem(constant, 4, 4, 256, 512),
                                           problem(channel, 16, 16, 128, 128), problem(channel, 4, 4, 256, 512), problem(channel, 4, 4, 128, 256),
                                           problem(head, 16, 16, 64, 64), problem(head, 32, 32, 64, 64), problem(head, 16, 16, 128, 128),
                                           problem(head, 32, 32, 128, 128)),
                         name_of);

INSTANTIATE_TEST_SUITE_P(BuiltShapes, DeltaRuleShapes,
                         ::testing::Values(problem(absent, 16, 16, 128, 128), problem(head, 16, 16, 64, 64), problem(head, 16, 16, 128, 128),
                                           problem(head, 8, 8, 256, 256), problem(head, 6, 6, 256, 512), problem(head, 8, 16, 128, 128),
                                           problem(head, 6, 12, 256, 512), problem(absent, 2, 2, 256, 256), problem(absent, 2, 2, 256, 512),
                                           problem(head, 4, 8, 256, 256), problem(channel, 16, 16, 64, 64), problem(channel, 16, 16, 128, 128),
                                           problem(channel, 8, 8, 256, 256), problem(channel, 6, 6, 256, 512), problem(channel, 8, 16, 128, 128)),
                         name_of);

const std::vector<int64_t> kVeryLong = {5, 100000, 1};

TEST(VeryLongMember, LinearRecurrence) { expect_laws_of_linear_recurrence(64, kVeryLong, DType::bf16); }

TEST(VeryLongMember, LinearAttention) {
  expect_laws_of_linear_attention(problem(constant, 8, 8, 64, 64), kVeryLong);
  expect_laws_of_linear_attention(problem(channel, 1, 1, 64, 64), kVeryLong);
}

TEST(VeryLongMember, DeltaRule) {
  for (const Decay decay : {head, channel}) expect_laws_of_delta_rule(problem(decay, 1, 1, 64, 64), kVeryLong);
}

TEST(VeryLongMember, Attention) { expect_laws_of_attention(1, 1, 64, 256, kVeryLong, DType::bf16); }

}  // namespace
}  // namespace braid::testing
