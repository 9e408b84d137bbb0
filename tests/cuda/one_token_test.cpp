// One token on a GPU: projections in one launch give what their operators give one by one; recurrences give what the CPU's do, and may write
// over their state.
#include <gtest/gtest.h>

#include "cuda/kernels/state_step/step.h"
#include "cuda/runtime/runtime.h"
#include "ops/projections.h"
#include "ops/recurrence/gated_delta_rule.h"
#include "ops/recurrence/gated_linear_attention.h"
#include "ops/recurrence/linear_recurrence.h"
#include "tests/support/cuda_laws.h"

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

enum class Decay : uint8_t { absent, constant, head, channel };

struct Sizes {
  int64_t H, HV, K, V;
};

/// The kernel of one token against the f64 oracle on the same rounded inputs, to law 3's tolerances, twice with the same bits and nothing written
/// outside. Not of the fixture above, which sanitizers run.
class OneTokenOracle : public OneToken {
 protected:
  static constexpr int64_t kSequences = 3;
  const Sequences seqs = Sequences::of_lengths({1, 1, 1});

  Tensor decay_of(Decay kind, const Sizes& x, double low, double high) {
    if (kind == Decay::constant) return uniform(host, random, {x.HV}, low, high);
    if (kind == Decay::head) return uniform(host, random, {kSequences, x.HV}, low, high);
    if (kind == Decay::channel) return uniform(host, random, {kSequences, x.HV, x.K}, low, high);
    return {};
  }
  /// What both recurrences have; q and k are normal times `size`.
  template <class Recurrence>
  typename Recurrence::Inputs inputs_of(const Sizes& x, Decay decay, double size = 1, double low = -1) {
    typename Recurrence::Inputs in;
    in.q = normal(host, random, {kSequences, x.H, x.K}, size), in.k = normal(host, random, {kSequences, x.H, x.K}, size);
    in.v = normal(host, random, {kSequences, x.HV, x.V});
    in.log_decay = decay_of(decay, x, low, 0);
    in.initial_state = normal(host, random, {kSequences, x.HV, x.K, x.V});
    return in;
  }
  template <class Recurrence>
  void expect_oracle(const typename Recurrence::Inputs& in, const typename Recurrence::Attrs& attrs, DType dtype, const InputKinds& kinds) {
    const int64_t damaged_before = num_damaged_storages();
    {
      Context guarded = cuda::make_context();
      guarded.guarded_allocations = true;
      ASSERT_TRUE(cuda::takes_step(guarded, in.q.size(2), attrs.seqs)) << "another kernel would be tested";
      const typename Recurrence::Inputs rounded = in_dtype<Recurrence>(host, in, dtype, kinds);
      const auto oracle = apply<Recurrence>(host, in_dtype<Recurrence>(host, rounded, DType::f64, kinds), attrs);
      const typename Recurrence::Inputs there = on_device(guarded, rounded);
      const auto out = apply<Recurrence>(guarded, there, attrs), again = apply<Recurrence>(guarded, there, attrs);
      expect_close_on_cuda(guarded, out, oracle, dtype, false);
      EXPECT_TRUE(same_bits(guarded, out.o, again.o) && same_bits(guarded, out.final_state, again.final_state));
    }
    EXPECT_EQ(num_damaged_storages(), damaged_before) << "bytes outside an allocation were written";
  }
  /// In bf16 with gates of either type, and in f32; with and without an initial state.
  template <class Recurrence>
  void expect_oracle_of_every_type(typename Recurrence::Inputs in, const typename Recurrence::Attrs& attrs) {
    for (const bool with_state : {true, false}) {
      if (!with_state) in.initial_state = {};
      SCOPED_TRACE(with_state ? "a state" : "no state");
      expect_oracle<Recurrence>(in, attrs, DType::bf16, {.accumulator = {"beta", "log_decay", "initial_state"}});
      expect_oracle<Recurrence>(in, attrs, DType::bf16, {.accumulator = {"initial_state"}});
      expect_oracle<Recurrence>(in, attrs, DType::f32, {});
    }
  }
  static std::string name_of(const Sizes& x, Decay decay) {
    constexpr std::array kNames = {"absent", "constant", "head", "channel"};
    std::ostringstream text;
    text << "heads " << x.H << " and " << x.HV << ", K " << x.K << ", V " << x.V << ", decay " << kNames[static_cast<int>(decay)];
    return text.str();
  }
};

TEST_F(OneTokenOracle, GatedLinearAttention) {
  for (const Sizes x : {Sizes{2, 2, 64, 64}, {2, 2, 128, 128}, {1, 1, 256, 256}, {1, 1, 256, 512}, {2, 2, 64, 40}, {1, 1, 100, 17}, {3, 3, 1, 1}})
    for (const Decay decay : {Decay::absent, Decay::constant, Decay::head, Decay::channel}) {
      SCOPED_TRACE(name_of(x, decay));
      expect_oracle_of_every_type<GatedLinearAttention>(inputs_of<GatedLinearAttention>(x, decay), {.seqs = seqs, .scale = {}});
    }
}

TEST_F(OneTokenOracle, GatedDeltaRule) {
  for (const Sizes x : {Sizes{2, 2, 64, 64}, {2, 4, 128, 128}, {1, 3, 256, 256}, {1, 2, 256, 512}, {2, 6, 64, 40}, {1, 2, 100, 17}, {3, 3, 1, 1}})
    for (const Decay decay : {Decay::absent, Decay::head, Decay::channel}) {
      SCOPED_TRACE(name_of(x, decay));
      GatedDeltaRule::Inputs in = inputs_of<GatedDeltaRule>(x, decay);
      in.beta = uniform(host, random, {kSequences, x.HV}, 0, 2);
      expect_oracle_of_every_type<GatedDeltaRule>(in, {.seqs = seqs, .scale = {}, .qk_l2norm = true});
      // A given scale; keys of a length near one, which is what models without the norm inside give.
      in.k = normal(host, random, in.k.shape(), 1 / std::sqrt(static_cast<double>(x.K)));
      expect_oracle_of_every_type<GatedDeltaRule>(in, {.seqs = seqs, .scale = 0.7, .qk_l2norm = false});
    }
}

/// q and k whose squares overflow, or are nothing beside the norm's eps.
TEST_F(OneTokenOracle, GatedDeltaRuleOfHugeAndTinyKeys) {
  for (const Sizes x : {Sizes{1, 2, 64, 64}, {1, 1, 256, 40}})
    for (const double size : {1e-12, 1e4, 1e12, 1e19, 1e30}) {
      SCOPED_TRACE(::testing::Message() << name_of(x, Decay::head) << ", of size " << size);
      GatedDeltaRule::Inputs in = inputs_of<GatedDeltaRule>(x, Decay::head, size);
      in.beta = uniform(host, random, {kSequences, x.HV}, 0, 1);
      expect_oracle_of_every_type<GatedDeltaRule>(in, {.seqs = seqs, .scale = {}, .qk_l2norm = true});
    }
}

TEST_F(OneTokenOracle, StrongDecays) {
  const Sizes x{2, 2, 64, 64};
  for (const Decay decay : {Decay::constant, Decay::head, Decay::channel})
    for (const double low : {-30.0, -1e3, -1e30}) {
      SCOPED_TRACE(::testing::Message() << name_of(x, decay) << ", down to " << low);
      expect_oracle_of_every_type<GatedLinearAttention>(inputs_of<GatedLinearAttention>(x, decay, 1, low), {.seqs = seqs, .scale = {}});
      if (decay == Decay::constant) continue;
      GatedDeltaRule::Inputs in = inputs_of<GatedDeltaRule>(x, decay, 1, low);
      in.beta = uniform(host, random, {kSequences, x.HV}, 0, 1);
      expect_oracle_of_every_type<GatedDeltaRule>(in, {.seqs = seqs, .scale = {}, .qk_l2norm = true});
    }
}

/// A NaN among the decays is in what it touches: on a GPU as on the CPU.
TEST_F(OneTokenOracle, NaNIsNotHidden) {
  const Sizes x{1, 2, 64, 64};
  for (const Decay decay : {Decay::head, Decay::channel}) {
    GatedDeltaRule::Inputs in = inputs_of<GatedDeltaRule>(x, decay);
    in.beta = uniform(host, random, {kSequences, x.HV}, 0, 1);
    in.log_decay.data<double>()[0] = std::numeric_limits<double>::quiet_NaN();  // of the first sequence's first head
    const GatedDeltaRule::Attrs attrs{.seqs = seqs, .scale = {}, .qk_l2norm = true};
    const GatedDeltaRule::Inputs there = on_device(*gpu, in_dtype<GatedDeltaRule>(host, in, DType::f32, {}));
    const std::vector<double> o = to_vector<double>(*gpu, apply<GatedDeltaRule>(*gpu, there, attrs).o),
                              expected = to_vector<double>(host, apply<GatedDeltaRule>(host, in, attrs).o);
    for (size_t i = 0; i < o.size(); ++i) EXPECT_EQ(std::isfinite(o[i]), std::isfinite(expected[i])) << i;
  }
}

}  // namespace
}  // namespace braid::testing
