#include "ops/short_conv.h"

#include <cmath>

#include "tests/support/neighbour_laws.h"
#include "tests/support/sequence_laws.h"

namespace braid::testing {
namespace {

OpCase<ShortConv> conv_case(const std::string& name, const std::vector<int64_t>& lengths, int64_t D, int64_t W, ConvActivation activation,
                            bool initial, double scale = 1, int64_t norm_dim = 0) {
  const Sequences seqs = Sequences::of_lengths(lengths);
  return {.name = name,
          .inputs =
              [=](Context& ctx, Random& random) {
                ShortConv::Inputs in{normal(ctx, random, {seqs.num_tokens(), D}, scale), normal(ctx, random, {D, W}), {}};
                if (initial) in.initial_state = normal(ctx, random, {seqs.count(), D, W - 1}, scale);
                return in;
              },
          .attrs = {.seqs = seqs, .activation = activation, .norm_dim = norm_dim}};
}

const std::vector<OpCase<ShortConv>> kCases = {
    conv_case("silu", {6, 0, 1, 2, 3, 9}, 5, 4, ConvActivation::silu, true),
    conv_case("none", {6, 0, 1, 2, 3, 9}, 5, 4, ConvActivation::none, true),
    conv_case("no_initial_state", {0, 7, 2, 0}, 3, 4, ConvActivation::silu, false),
    conv_case("width_2", {4, 1, 0, 3}, 6, 2, ConvActivation::silu, true),
    conv_case("width_7", {9, 3, 1, 0}, 3, 7, ConvActivation::none, true),
    conv_case("many_ranges", {700, 1, 0, 299}, 64, 4, ConvActivation::silu, true),
    conv_case("large_values", {9, 3}, 4, 4, ConvActivation::none, true, 1e4),
    conv_case("heads", {6, 0, 1, 2, 3, 9}, 6, 4, ConvActivation::silu, true, 1, 3),
    conv_case("heads_without_silu", {7, 0, 2}, 6, 3, ConvActivation::none, false, 1, 2),
    conv_case("one_head", {5, 4}, 6, 4, ConvActivation::silu, true, 1, 6),
};
const std::vector<OpCase<ShortConv>> kPointwise = {conv_case("width_1", {4, 0, 3}, 6, 1, ConvActivation::silu, true),
                                                   conv_case("no_tokens", {0, 0}, 6, 4, ConvActivation::silu, true)};
OpCase<ShortConv> tiled_case(const std::string& name, const std::vector<int64_t>& lengths, int64_t D, int64_t W, bool initial, int64_t norm_dim = 0,
                             double scale = 1) {
  OpCase<ShortConv> c = conv_case(name, lengths, D, W, ConvActivation::silu, initial, scale, norm_dim);
  c.gradcheck = false;
  return c;
}
/// Longer than a tile of the kernels, with members that end inside, on and between tiles.
const std::vector<OpCase<ShortConv>> kTiled = {
    tiled_case("tiled", {62, 1, 1, 0, 1, 63, 64, 65, 2, 3, 200}, 264, 4, true), tiled_case("tiled_odd_width", {130, 0, 70}, 133, 4, false),
    tiled_case("tiled_width_3", {61, 5, 90}, 20, 3, true), tiled_case("tiled_width_16", {64, 7, 1, 100}, 6, 16, true)};
/// Heads whose lengths the kernels find in the same launch, and others.
const std::vector<OpCase<ShortConv>> kHeads = {tiled_case("tiled_heads_of_64", {62, 1, 1, 0, 1, 63, 64, 65, 2, 3}, 512, 4, true, 64),
                                               tiled_case("tiled_heads_of_128", {130, 0, 70}, 256, 4, false, 128),
                                               tiled_case("tiled_heads_of_256", {64, 5, 130}, 512, 3, true, 256),
                                               tiled_case("tiled_heads_of_33", {64, 70}, 66, 4, true, 33),
                                               tiled_case("tiled_heads_small", {64, 70}, 256, 4, true, 64, 1e-4),
                                               tiled_case("tiled_heads_large", {64, 70}, 256, 4, true, 64, 1e6)};
const InputKinds kKinds{.accumulator = {"weight", "initial_state"}, .token = {"x"}, .state = {"initial_state"}};
const bool kLaws = register_laws<ShortConv>("ShortConv", kCases, kKinds) && register_laws<ShortConv>("ShortConv", kPointwise, kKinds) &&
                   register_laws<ShortConv>("ShortConv", kTiled, kKinds) && register_laws<ShortConv>("ShortConv", kHeads, kKinds) &&
                   register_sequence_laws<ShortConv>("ShortConv", kCases, kKinds);
const bool kNeighbourLaws = register_neighbour_laws<ShortConv>("ShortConv", kCases, kKinds) &&
                            register_neighbour_laws<ShortConv>("ShortConv", kTiled, kKinds) &&
                            register_neighbour_laws<ShortConv>("ShortConv", kHeads, kKinds);

/// Sequence by sequence: every input, initial ones first, in one list.
TEST(ShortConv, IsTheDefinition) {
  Context ctx(2);
  std::vector<OpCase<ShortConv>> all = kCases;
  all.insert(all.end(), kPointwise.begin(), kPointwise.end());
  for (const OpCase<ShortConv>& c : all) {
    const ShortConv::Inputs in = case_inputs(ctx, c);
    const int64_t D = in.x.size(1), W = in.weight.size(1);
    const Sequences& seqs = c.attrs.seqs;
    const ShortConv::Outputs out = apply<ShortConv>(ctx, in, c.attrs);
    ShortConv::Outputs expected{Tensor::zeros(ctx, out.o.shape(), DType::f64), Tensor::zeros(ctx, out.final_state.shape(), DType::f64)};
    for (int64_t s = 0; s < seqs.count(); ++s)
      for (int64_t d = 0; d < D; ++d) {
        std::vector<double> inputs;
        for (int64_t j = 0; j < W - 1; ++j) inputs.push_back(in.initial_state ? in.initial_state.data<double>()[(s * D + d) * (W - 1) + j] : 0);
        for (int64_t n = seqs.begin(s); n < seqs.end(s); ++n) {
          inputs.push_back(in.x.data<double>()[n * D + d]);
          double z = 0;
          for (int64_t w = 0; w < W; ++w) z += in.weight.data<double>()[d * W + w] * inputs[inputs.size() - W + w];
          expected.o.data<double>()[n * D + d] = c.attrs.activation == ConvActivation::silu ? z / (1 + std::exp(-z)) : z;
        }
        std::copy(inputs.end() - (W - 1), inputs.end(), expected.final_state.data<double>() + (s * D + d) * (W - 1));
      }
    for (int64_t at = 0, head = c.attrs.norm_dim; head > 0 && at < out.o.numel(); at += head) {
      double *o = expected.o.data<double>() + at, sum = 1e-6;
      for (int64_t i = 0; i < head; ++i) sum += o[i] * o[i];
      for (int64_t i = 0; i < head; ++i) o[i] /= std::sqrt(sum);
    }
    expect_close(ctx, out, expected, 1e-14, c.name + " ");
    EXPECT_EQ(relative_error(ctx, out.final_state, expected.final_state), 0) << c.name;
  }
}

TEST(ShortConv, SiluOfHugeValuesIsFinite) {
  Context ctx;
  for (DType dtype : {DType::f64, DType::f32}) {
    const Tensor x = converted(ctx, from_vector<double>(ctx, {1e4, -1e4, 800, -800, 0}, {5, 1}), dtype);
    const Tensor weight = converted(ctx, from_vector<double>(ctx, {1}, {1, 1}), dtype);
    const OpRun<ShortConv> run = run_op<ShortConv>(ctx, {x, weight, {}}, {.seqs = Sequences::single(5), .activation = ConvActivation::silu});
    const std::vector<double> o = to_vector<double>(ctx, run.out.o), expected = {1e4, 0, 800, 0, 0};
    for (int i = 0; i < 5; ++i) EXPECT_NEAR(o[i], expected[i], 1e-30) << i;
    EXPECT_TRUE(all_finite(ctx, run.d_in.x) && all_finite(ctx, run.d_in.weight));
  }
}

TEST(ShortConv, HeadsOfHugeValuesHaveUnitLength) {
  Context ctx;
  for (DType dtype : {DType::f64, DType::f32}) {
    const Tensor x = converted(ctx, from_vector<double>(ctx, {3e30, 4e30, 0, 0}, {2, 2}), dtype);
    const Tensor weight = converted(ctx, from_vector<double>(ctx, {1, 1}, {2, 1}), dtype);
    const OpRun<ShortConv> run = run_op<ShortConv>(ctx, {x, weight, {}}, {.seqs = Sequences::single(2), .norm_dim = 2});
    const std::vector<double> o = to_vector<double>(ctx, run.out.o), expected = {0.6, 0.8, 0, 0};
    for (int i = 0; i < 4; ++i) EXPECT_NEAR(o[i], expected[i], 1e-6) << i;
    EXPECT_TRUE(all_finite(ctx, run.d_in.x) && all_finite(ctx, run.d_in.weight));
  }
}

TEST(ShortConv, SaysWhatIsWrong) {
  Context ctx;
  Random random(3);
  const Tensor x = normal(ctx, random, {5, 3}), weight = normal(ctx, random, {3, 4});
  const auto refusal = [&](const ShortConv::Inputs& in, int64_t num_tokens) -> std::string {
    try {
      apply<ShortConv>(ctx, in, {.seqs = Sequences::single(num_tokens)});
    } catch (const Error& error) {
      return error.what();
    }
    return "accepted";
  };
  EXPECT_EQ(refusal({x, normal(ctx, random, {2, 4}), {}}, 5), "short_conv: weight must be f64 [D = 3, W], got f64 [2, 4]");
  EXPECT_EQ(refusal({x, Tensor::zeros(ctx, {3, 0}, DType::f64), {}}, 5), "short_conv: weight must have a width W of at least 1, got [3, 0]");
  EXPECT_EQ(refusal({x, weight, normal(ctx, random, {1, 3, 4})}, 5),
            "short_conv: initial_state must be f64 [S = 1, D = 3, W - 1 = 3], got f64 [1, 3, 4]");
  EXPECT_THROW(apply<ShortConv>(ctx, {x, weight, {}}, {.seqs = Sequences::single(5), .norm_dim = 2}), Error);
  EXPECT_EQ(refusal({x, weight, {}}, 4), "short_conv: cu_seqlens must end at N = 5 tokens of x, got 4");
}

}  // namespace
}  // namespace braid::testing
