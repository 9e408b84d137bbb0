// One token on a GPU: projections in one launch give what their operators give one by one, and recurrences may write over their state.
#include <gtest/gtest.h>

#include "cuda/runtime/runtime.h"
#include "ops/projections.h"
#include "ops/recurrence/gated_delta_rule.h"
#include "ops/recurrence/gated_linear_attention.h"
#include "ops/recurrence/linear_recurrence.h"
#include "tests/support/random_tensors.h"

namespace braid::testing {
namespace {

class OneToken : public ::testing::Test {
 protected:
  void SetUp() override {
    if (cuda::num_devices() == 0) GTEST_SKIP() << "no GPU";
    gpu.emplace(cuda::make_context());
  }
  Tensor make(const Shape& shape, DType dtype, double scale = 1) { return copied(*gpu, converted(host, normal(host, random, shape, scale), dtype)); }
  double error(const Tensor& actual, const Tensor& expected) {
    const auto local = [&](const Tensor& tensor) { return from_vector(host, to_vector<double>(*gpu, tensor), tensor.shape()); };
    return relative_error(host, local(actual), local(expected));
  }

  Context host;
  std::optional<Context> gpu;
  Random random{3};
};

/// Maps of every kind, of a width that no block divides; every kind of tail.
std::vector<ProjectionMap> maps_of(const std::vector<Tensor>& weights, const std::vector<Tensor>& extras, std::vector<Tensor>& tails) {
  return {{.weight = weights[0]},
          {.weight = weights[1], .bias = extras[0]},
          {},
          {.weight = weights[2], .activation = MapActivation::sigmoid},
          {.weight = weights[3], .conv = extras[1], .tail = &tails[0], .activation = MapActivation::silu},
          {.weight = weights[4], .conv = extras[2], .tail = &tails[1]},
          {.weight = weights[5], .bias = extras[3], .conv = extras[2], .activation = MapActivation::silu},
          {.weight = weights[1], .activation = MapActivation::silu}};
}

TEST_F(OneToken, ProjectionsOfOneLaunch) {
  constexpr int64_t kOut = 37;
  for (const int64_t in : {64, 1000, 2048, 5632}) {
    std::vector<Tensor> weights,
        extras = {make({kOut}, DType::f32), make({kOut, 4}, DType::f32), make({kOut, 3}, DType::f32), make({kOut}, DType::bf16)};
    for (int i = 0; i < 6; ++i) weights.push_back(make({kOut, in}, DType::bf16, 0.1));
    const Tensor tail = make({1, kOut, 3}, DType::f32);
    // Without a gradient one launch; a tape takes the operators one by one.
    std::vector<Tensor> tails = {copied(*gpu, tail), {}}, tails_apart = {copied(*gpu, tail), {}};
    const std::vector<ProjectionMap> maps = maps_of(weights, extras, tails), maps_apart = maps_of(weights, extras, tails_apart);
    const void* const place = tails[0].raw();
    for (int token = 0; token < 3; ++token) {
      const Tensor x = make({1, in}, DType::bf16);
      const std::vector<Tensor> ys = project_each(*gpu, x, Sequences::single(1), maps);
      Tape tape;
      WithTape recording(*gpu, &tape);
      const std::vector<Tensor> apart = project_each(*gpu, x, Sequences::single(1), maps_apart);
      for (size_t i = 0; i < ys.size(); ++i) {
        ASSERT_EQ(ys[i].defined(), maps[i].weight.defined());
        if (!ys[i]) continue;
        EXPECT_LE(error(ys[i], apart[i]), 4e-3) << "map " << i << ", token " << token << ", " << in << " channels";
      }
    }
    EXPECT_EQ(tails[0].raw(), place) << "a tail must stay where it is";
    for (size_t i = 0; i < tails.size(); ++i) EXPECT_LE(error(tails[i], tails_apart[i]), 4e-3) << "tail " << i;
  }
}

TEST_F(OneToken, SwiGluOfOneLaunch) {
  for (const int64_t in : {64, 1000, 2048, 5632}) {
    const Tensor x = make({1, in}, DType::bf16), gate = make({37, in}, DType::bf16, 0.05), up = make({37, in}, DType::bf16, 0.05);
    const Tensor y = project_swiglu(*gpu, x, gate, up);
    Tape tape;
    WithTape recording(*gpu, &tape);
    EXPECT_LE(error(y, project_swiglu(*gpu, x, gate, up)), 4e-3) << in << " channels";
  }
}

/// Twice the same inputs: into new memory, and over the initial state.
template <class Recurrence>
void expect_same_in_place(Context& gpu, typename Recurrence::Inputs in, typename Recurrence::Attrs attrs) {
  const auto apart = apply<Recurrence>(gpu, in, attrs);
  attrs.in_place = true;
  in.initial_state = copied(gpu, in.initial_state);
  const auto together = apply<Recurrence>(gpu, in, attrs);
  EXPECT_EQ(together.final_state.raw(), in.initial_state.raw());
  EXPECT_EQ(to_vector<double>(gpu, together.o), to_vector<double>(gpu, apart.o));
  EXPECT_EQ(to_vector<double>(gpu, together.final_state), to_vector<double>(gpu, apart.final_state));
}

TEST_F(OneToken, StatesInPlace) {
  constexpr int64_t S = 3, H = 2, HV = 4;
  const Sequences seqs = Sequences::of_lengths({1, 1, 1});
  for (const DType dtype : {DType::bf16, DType::f32})
    for (const auto& [K, V] : {std::pair<int64_t, int64_t>{64, 128}, {48, 40}, {300, 24}}) {
      const Tensor q = make({S, H, K}, dtype), k = make({S, H, K}, dtype, 0.1), v = make({S, HV, V}, dtype), beta = make({S, HV}, DType::f32);
      const Tensor state = make({S, HV, K, V}, DType::f32), few = make({S, H, K, V}, DType::f32), of_h = make({S, H, V}, dtype);
      for (const Tensor& decay : {Tensor{}, make({S, HV}, DType::f32), make({S, HV, K}, DType::f32)})
        expect_same_in_place<GatedDeltaRule>(*gpu, {q, k, v, beta, decay, state}, {.seqs = seqs, .scale = {}, .qk_l2norm = true});
      for (const Tensor& decay : {Tensor{}, make({H}, DType::f32), make({S, H}, dtype), make({S, H, K}, dtype)})
        expect_same_in_place<GatedLinearAttention>(*gpu, {q, k, of_h, decay, few}, {.seqs = seqs, .scale = {}});
      expect_same_in_place<LinearRecurrence>(*gpu, {q.view({S, H * K}), k.view({S, H * K}), make({S, H * K}, DType::f32)}, {.seqs = seqs});
    }
}

TEST_F(OneToken, InPlaceNeedsOneTokenASequence) {
  const Tensor x = make({2, 8}, DType::f32), state = make({1, 8}, DType::f32);
  const LinearRecurrence::Attrs attrs{.seqs = Sequences::single(2), .in_place = true};
  EXPECT_THROW(apply<LinearRecurrence>(*gpu, {x, x, state}, attrs), Error);
}

}  // namespace
}  // namespace braid::testing
