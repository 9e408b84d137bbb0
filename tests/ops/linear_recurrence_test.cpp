#include "ops/recurrence/linear_recurrence.h"

#include <cmath>

#include "tests/support/neighbour_laws.h"
#include "tests/support/sequence_laws.h"

namespace braid::testing {
namespace {

using Op = LinearRecurrence;

OpCase<Op> make_case(const std::string& name, const std::vector<int64_t>& lengths, int64_t D, bool with_state, double lowest, double highest) {
  const Sequences seqs = Sequences::of_lengths(lengths);
  OpCase<Op> c;
  c.name = name;
  c.attrs.seqs = seqs;
  c.inputs = [=](Context& ctx, Random& random) {
    const int64_t N = seqs.num_tokens();
    return Op::Inputs{normal(ctx, random, {N, D}), uniform(ctx, random, {N, D}, lowest, highest),
                      with_state ? normal(ctx, random, {seqs.count(), D}) : Tensor{}};
  };
  c.gradcheck = seqs.num_tokens() * D <= 2000;
  return c;
}

const InputKinds kKinds = {.accumulator = {"log_decay", "initial_state"}, .token = {"x", "log_decay"}, .state = {"initial_state"}};

const std::vector<OpCase<Op>> kCases = {
    make_case("small", {5, 0, 1, 17}, 7, true, -2, 0),      make_case("no_state", {3, 9}, 33, false, -1, 0),
    make_case("one_token_each", {1, 1, 1}, 5, true, -1, 0), make_case("wide", {40, 0, 23}, 300, true, -0.5, 0),
    make_case("strong_decay", {30, 3}, 9, true, -30, -29),  make_case("no_decay", {21}, 6, true, 0, 0),
    make_case("no_tokens", {0, 0}, 4, true, -1, 0),
};

std::vector<int64_t> short_lengths(int64_t count) {
  std::vector<int64_t> lengths(count);
  for (int64_t s = 0; s < count; ++s) lengths[s] = s * s % 5;
  return lengths;
}

/// Longer than a tile of the kernels and than a group of tiles, with members that end inside, on and between tiles.
const std::vector<OpCase<Op>> kTiledCases = {make_case("tiled", {300, 0, 1, 63, 64, 65, 0, 500, 1, 128}, 260, true, -2, 0),
                                             make_case("tiled_slow_decay", {1500}, 64, false, -0.02, 0),
                                             make_case("tiled_odd_width", {70, 200, 1}, 131, true, -1, 0),
                                             make_case("groups_of_tiles", {3000, 0, 1, 2100, 70, 1024}, 72, true, -0.5, 0),
                                             make_case("many_short", short_lengths(1100), 136, true, -1, 0),
                                             make_case("many_short_no_state", short_lengths(900), 264, false, -1, 0)};

/// Of widths that bf16 kernels take 8 channels at a time: several tiles, and a group of tiles, in packs that are also taken apart and cut.
const std::vector<OpCase<Op>> kVectorCases = {
    make_case("vectors", {65, 1, 0, 130, 64}, 1024, true, -1, 0),     make_case("vectors_wide", {70, 66}, 2048, false, -0.5, 0),
    make_case("vectors_groups", {600, 1, 70}, 136, true, -0.3, 0),    make_case("vectors_strong_decay", {150, 65}, 1024, true, -30, -29),
    make_case("vectors_mixed_decay", {130, 70}, 256, true, -30, 0),   make_case("vectors_no_decay", {190, 1, 64}, 1024, true, 0, 0),
    make_case("vectors_of_a_tile", {17, 0, 3, 40}, 128, true, -1, 0),
};

const bool kLaws = register_laws<Op>("LinearRecurrence", kCases, kKinds) && register_laws<Op>("LinearRecurrence", kTiledCases, kKinds) &&
                   register_laws<Op>("LinearRecurrence", kVectorCases, kKinds);
const bool kSequenceLaws =
    register_sequence_laws<Op>("LinearRecurrence", kCases, kKinds) && register_sequence_laws<Op>("LinearRecurrence", kVectorCases, kKinds);
const bool kNeighbourLaws = register_neighbour_laws<Op>("LinearRecurrence", kCases, kKinds) &&
                            register_neighbour_laws<Op>("LinearRecurrence", kTiledCases, kKinds) &&
                            register_neighbour_laws<Op>("LinearRecurrence", kVectorCases, kKinds);

/// Decays of the type of x: kernels of their own in bf16.
const bool kNarrowDecayLaws = register_laws<Op>(
    "LinearRecurrenceNarrowDecay", {make_case("vectors", {600, 1, 70}, 136, true, -0.3, 0), make_case("odd_width", {70, 200, 1}, 131, true, -1, 0)},
    {.accumulator = {"initial_state"}});

/// The definition in plain loops.
TEST(LinearRecurrence, IsItsDefinition) {
  Context ctx(2);
  const OpCase<Op> c = make_case("", {7, 0, 1, 30}, 130, true, -3, 0);
  const Op::Inputs in = case_inputs(ctx, c);
  for (Form form : {Form::token, Form::chunked}) {
    Op::Attrs attrs = c.attrs;
    attrs.form = form;
    const Op::Outputs out = apply<Op>(ctx, in, attrs);
    const int64_t D = in.x.size(1);
    std::vector<double> h = to_vector<double>(ctx, in.initial_state);
    for (int64_t s = 0; s < attrs.seqs.count(); ++s)
      for (int64_t t = attrs.seqs.begin(s); t < attrs.seqs.end(s); ++t)
        for (int64_t d = 0; d < D; ++d) {
          double& state = h[s * D + d];
          state = std::exp(in.log_decay.data<double>()[t * D + d]) * state + in.x.data<double>()[t * D + d];
          ASSERT_NEAR(out.o.data<double>()[t * D + d], state, 1e-12);
        }
    EXPECT_LE(relative_error(ctx, out.final_state, from_vector(ctx, h, out.final_state.shape())), 1e-14);
  }
}

TEST(LinearRecurrence, HugeNegativeLogDecayForgetsEverything) {
  Context ctx(2);
  for (DType dtype : {DType::f64, DType::f32})
    for (double lowest : {-1e4, -1e30, -std::numeric_limits<double>::infinity()}) {
      Op::Inputs in = case_inputs(ctx, make_case("", {20}, 9, true, -1, 0));
      for (int64_t i = 0; i < in.log_decay.numel(); ++i) in.log_decay.data<double>()[i] = lowest;
      for (Tensor* tensor : tensors_of(in)) *tensor = converted(ctx, *tensor, dtype);
      const OpRun<Op> run = run_op<Op>(ctx, in, {Sequences::single(20), Form::chunked});
      EXPECT_LE(relative_error(ctx, run.out.o, in.x), 1e-30);
      for (const Tensor* d_in : tensors_of(run.d_in)) EXPECT_TRUE(all_finite(ctx, *d_in));
    }
}

/// A member of 100,000 tokens between short ones.
TEST(LinearRecurrence, LongSequence) {
  Context ctx(2);
  const OpCase<Op> c = make_case("", {3, 100000, 1}, 3, true, -0.01, 0);
  const Op::Inputs in = case_inputs(ctx, c);
  const OpRun<Op> token = run_op<Op>(ctx, in, {c.attrs.seqs, Form::token}), chunked = run_op<Op>(ctx, in, {c.attrs.seqs, Form::chunked});
  expect_close(ctx, chunked.out, token.out, 1e-10, "");
  expect_close(ctx, chunked.d_in, token.d_in, 1e-10, "d_");
}

void expect_error(Op::Inputs in, const Sequences& seqs, const std::string& message) {
  Context ctx(1);
  try {
    apply<Op>(ctx, in, {seqs, Form::automatic});
    ADD_FAILURE() << "accepted, although: " << message;
  } catch (const Error& error) {
    EXPECT_EQ(error.what(), message);
  }
}

TEST(LinearRecurrence, Errors) {
  Context ctx(1);
  const auto zeros = [&](const Shape& shape) { return Tensor::zeros(ctx, shape, DType::f32); };
  const Sequences four = Sequences::single(4);
  expect_error({zeros({4, 2}), zeros({3, 2}), {}}, four, "linear_recurrence: log_decay must be f32 [N = 4, D = 2], got f32 [3, 2]");
  expect_error({zeros({4, 2}), {}, {}}, four, "linear_recurrence: log_decay must be f32 [N = 4, D = 2], got nothing");
  expect_error({zeros({4, 2}), zeros({4, 2}), zeros({2, 2})}, four, "linear_recurrence: initial_state must be f32 [S = 1, D = 2], got f32 [2, 2]");
  expect_error({zeros({4, 2}), zeros({4, 2}), {}}, Sequences::single(5), "linear_recurrence: cu_seqlens must end at N = 4 tokens of x, got 5");
}

}  // namespace
}  // namespace braid::testing
