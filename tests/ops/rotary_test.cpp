#include "ops/rotary.h"

#include <cmath>

#include "tests/support/sequence_laws.h"

namespace braid::testing {
namespace {

OpCase<Rotary> rotary_case(const std::string& name, const std::vector<int64_t>& lengths, int64_t H, int64_t D, double theta = 10000) {
  const Sequences seqs = Sequences::of_lengths(lengths);
  return {.name = name,
          .inputs =
              [=](Context& ctx, Random& random) {
                return Rotary::Inputs{normal(ctx, random, {seqs.num_tokens(), H, D})};
              },
          .attrs = {.seqs = seqs, .theta = theta}};
}

const std::vector<OpCase<Rotary>> kCases = {
    rotary_case("packed", {5, 0, 1, 9}, 2, 8),   rotary_case("smallest", {4}, 1, 2),     rotary_case("theta", {7, 3}, 3, 6, 500000),
    rotary_case("many", {200, 1, 0, 64}, 2, 16), rotary_case("no_tokens", {0, 0}, 2, 8),
};
std::vector<OpCase<Rotary>> offset_cases() {
  OpCase<Rotary> few = rotary_case("offsets", {5, 0, 1, 9}, 2, 8), many = rotary_case("far_offsets", {100, 1, 3}, 2, 16);
  few.attrs.offsets = {7, 3, 0, 100};
  many.attrs.offsets = {1000, 0, 5000};
  OpCase<Rotary> heads = rotary_case("heads", {300, 0, 1, 64}, 3, 64), sequences = rotary_case("many_sequences", std::vector<int64_t>(40, 3), 2, 8);
  heads.attrs.offsets = {9, 0, 4000, 1};
  for (int64_t s = 0; s < 40; ++s) sequences.attrs.offsets.push_back(5 * s);
  heads.gradcheck = sequences.gradcheck = false;
  return {few, many, heads, sequences};
}
const bool kLaws = register_laws<Rotary>("Rotary", kCases) && register_laws<Rotary>("Rotary", offset_cases()) &&
                   register_sequence_laws<Rotary>("Rotary", kCases, {.token = {"x"}});

TEST(Rotary, IsTheDefinition) {
  Context ctx(2);
  std::vector<OpCase<Rotary>> all = kCases;
  for (const OpCase<Rotary>& c : offset_cases()) all.push_back(c);
  for (const OpCase<Rotary>& c : all) {
    const Tensor x = case_inputs(ctx, c).x;
    const Sequences& seqs = c.attrs.seqs;
    const int64_t H = x.size(1), D = x.size(2);
    const Tensor expected = Tensor::zeros(ctx, x.shape(), DType::f64);
    for (int64_t s = 0; s < seqs.count(); ++s)
      for (int64_t n = seqs.begin(s); n < seqs.end(s); ++n)
        for (int64_t h = 0; h < H; ++h)
          for (int64_t i = 0; i < D / 2; ++i) {
            const int64_t position = n - seqs.begin(s) + (c.attrs.offsets.empty() ? 0 : c.attrs.offsets[s]);
            const double angle = static_cast<double>(position) * std::pow(c.attrs.theta, -2.0 * static_cast<double>(i) / static_cast<double>(D));
            const double* x1 = x.data<double>() + (n * H + h) * D + i;
            double* y1 = expected.data<double>() + (n * H + h) * D + i;
            y1[0] = x1[0] * std::cos(angle) - x1[D / 2] * std::sin(angle);
            y1[D / 2] = x1[D / 2] * std::cos(angle) + x1[0] * std::sin(angle);
          }
    EXPECT_LE(relative_error(ctx, apply<Rotary>(ctx, {x}, c.attrs).y, expected), 1e-12) << c.name;
  }
}

TEST(Rotary, ProductsDependOnDistancesOnly) {
  Context ctx;
  Random random(3);
  const Tensor q = normal(ctx, random, {1, 1, 16}), k = normal(ctx, random, {1, 1, 16});
  const auto product = [&](int64_t q_position, int64_t k_position) {
    const std::vector<double> a = to_vector<double>(ctx, apply<Rotary>(ctx, {q}, {.seqs = Sequences::single(1), .offsets = {q_position}}).y);
    const std::vector<double> b = to_vector<double>(ctx, apply<Rotary>(ctx, {k}, {.seqs = Sequences::single(1), .offsets = {k_position}}).y);
    double sum = 0;
    for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
    return sum;
  };
  EXPECT_NEAR(product(70, 50), product(20, 0), 1e-12);
  EXPECT_NEAR(product(100020, 100000), product(20, 0), 1e-9);
}

TEST(Rotary, OffsetsContinueASequence) {
  Context ctx;
  Random random(3);
  const Tensor x = normal(ctx, random, {100, 2, 8});
  const Tensor whole = apply<Rotary>(ctx, {x}, {.seqs = Sequences::single(100)}).y;
  const Tensor rest = apply<Rotary>(ctx, {x.slice(0, 30, 100)}, {.seqs = Sequences::single(70), .offsets = {30}}).y;
  EXPECT_LE(relative_error(ctx, rest, whole.slice(0, 30, 100)), 1e-13);
}

TEST(Rotary, SaysWhatIsWrong) {
  Context ctx;
  const auto refusal = [&](const Shape& shape, const Rotary::Attrs& attrs) -> std::string {
    try {
      apply<Rotary>(ctx, {Tensor::zeros(ctx, shape, DType::f64)}, attrs);
    } catch (const Error& error) {
      return error.what();
    }
    return "accepted";
  };
  const Sequences four = Sequences::single(4);
  EXPECT_EQ(refusal({4, 2, 5}, {.seqs = four}), "rotary: x must have an even D, got [4, 2, 5]");
  EXPECT_EQ(refusal({4, 6}, {.seqs = four}), "rotary: x must be floating [N, H, D], got f64 [4, 6]");
  EXPECT_EQ(refusal({5, 2, 6}, {.seqs = four}), "rotary: cu_seqlens must end at N = 5 tokens of x, got 4");
  EXPECT_EQ(refusal({4, 2, 6}, {.seqs = four, .theta = 0}), "rotary: theta must be positive, got 0");
  EXPECT_EQ(refusal({4, 2, 6}, {.seqs = four, .offsets = {1, 2}}), "rotary: offsets must be one per sequence, S = 1, got 2");
  EXPECT_EQ(refusal({4, 2, 6}, {.seqs = four, .offsets = {-1}}), "rotary: offsets must not be negative, got -1");
}

}  // namespace
}  // namespace braid::testing
