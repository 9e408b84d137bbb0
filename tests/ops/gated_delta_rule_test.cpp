#include "ops/recurrence/gated_delta_rule.h"

#include <cmath>

#include "tests/ops/gated_delta_rule_extreme_cases.h"
#include "tests/support/neighbour_laws.h"
#include "tests/support/sequence_laws.h"

namespace braid {
namespace {

using namespace braid::testing;
using namespace braid::delta_cases;

const bool kLaws = register_laws<GatedDeltaRule>("GatedDeltaRuleLaws", cases(), kKinds) &&
                   register_laws<GatedDeltaRule>("GatedDeltaRuleExtremes", extreme_cases(), kKinds);
const bool kSequenceLaws = register_sequence_laws<GatedDeltaRule>("GatedDeltaRuleLaws", cases(), kKinds) &&
                           register_sequence_laws<GatedDeltaRule>("GatedDeltaRuleExtremes", extreme_cases(), kKinds);
const bool kNeighbourLaws = register_neighbour_laws<GatedDeltaRule>("GatedDeltaRuleLaws", cases(), kKinds) &&
                            register_neighbour_laws<GatedDeltaRule>("GatedDeltaRuleExtremes", extreme_cases(), kKinds);

/// The equations of the header in plain loops.
struct Naive {
  Naive(Context& ctx, const Inputs& in, const Spec& x) : o(in.v.numel()), final_state(to_vector<double>(ctx, start(ctx, in, x))) {
    const auto q = to_vector<double>(ctx, in.q), k = to_vector<double>(ctx, in.k), v = to_vector<double>(ctx, in.v),
               beta = to_vector<double>(ctx, in.beta);
    const auto log_decay = in.log_decay ? to_vector<double>(ctx, in.log_decay) : std::vector<double>{};
    const double scale = x.scale.value_or(1 / std::sqrt(static_cast<double>(x.K)));
    const Sequences seqs = Sequences::of_lengths(x.lengths);
    for (int64_t s = 0; s < seqs.count(); ++s) {
      for (int64_t j = 0; j < x.HV; ++j) {
        double* S = final_state.data() + (s * x.HV + j) * x.K * x.V;
        for (int64_t n = seqs.begin(s); n < seqs.end(s); ++n) {
          const int64_t query = (n * x.H + j / (x.HV / x.H)) * x.K, row = n * x.HV + j;
          double q_norm = 1, k_norm = 1;
          if (x.l2norm) {
            double q_sum = 1e-6, k_sum = 1e-6;
            for (int64_t c = 0; c < x.K; ++c) q_sum += q[query + c] * q[query + c], k_sum += k[query + c] * k[query + c];
            q_norm = std::sqrt(q_sum), k_norm = std::sqrt(k_sum);
          }
          for (int64_t c = 0; c < x.K; ++c) {
            const double log_a = x.decay == Decay::none ? 0 : x.decay == Decay::head ? log_decay[row] : log_decay[row * x.K + c];
            for (int64_t d = 0; d < x.V; ++d) S[c * x.V + d] *= std::exp(log_a);
          }
          for (int64_t d = 0; d < x.V; ++d) {
            double read = 0, sum = 0;
            for (int64_t c = 0; c < x.K; ++c) read += S[c * x.V + d] * k[query + c] / k_norm;
            const double u = beta[row] * (v[row * x.V + d] - read);
            for (int64_t c = 0; c < x.K; ++c) {
              S[c * x.V + d] += k[query + c] / k_norm * u;
              sum += S[c * x.V + d] * q[query + c] / q_norm;
            }
            o[row * x.V + d] = scale * sum;
          }
        }
      }
    }
  }
  static Tensor start(Context& ctx, const Inputs& in, const Spec& x) {
    return in.initial_state ? in.initial_state : Tensor::zeros(ctx, {static_cast<int64_t>(x.lengths.size()), x.HV, x.K, x.V}, DType::f64);
  }
  std::vector<double> o, final_state;
};

TEST(GatedDeltaRule, equals_its_definition) {
  Context ctx(2);
  for (const Decay decay : {Decay::none, Decay::head, Decay::channel}) {
    for (const bool l2norm : {false, true}) {
      const Spec x{
          .lengths = {0, 1, 20, 70}, .HV = 4, .decay = decay, .l2norm = l2norm, .size = 0.5, .scale = l2norm ? std::optional(0.3) : std::nullopt};
      Random random(3);
      const Inputs in = make_inputs(ctx, random, x);
      const Naive expected(ctx, in, x);
      for (const Form form : {Form::token, Form::chunked, Form::automatic}) {
        const auto out = apply<GatedDeltaRule>(ctx, in, make_attrs(x, form));
        EXPECT_LE(relative_error(ctx, out.o, from_vector(ctx, expected.o, out.o.shape())), 1e-12);
        EXPECT_LE(relative_error(ctx, out.final_state, from_vector(ctx, expected.final_state, out.final_state.shape())), 1e-12);
      }
    }
  }
}

/// f64 and f32 chunked runs against the f64 token form of the same (f32) values; everything finite.
void expect_forms_agree(Context& ctx, const Inputs& exact, const Spec& x, double f32_tolerance) {
  const Inputs narrow = in_dtype<GatedDeltaRule>(ctx, exact, DType::f32, kKinds), wide = in_dtype<GatedDeltaRule>(ctx, narrow, DType::f64, kKinds);
  const auto token = run_op<GatedDeltaRule>(ctx, wide, make_attrs(x, Form::token));
  const auto chunked = run_op<GatedDeltaRule>(ctx, wide, make_attrs(x, Form::chunked));
  expect_close(ctx, chunked.out, token.out, 1e-10, "f64 ");
  expect_close(ctx, chunked.d_in, token.d_in, 1e-10, "f64 d_");
  for (const Form form : {Form::token, Form::chunked}) {
    const auto run = run_op<GatedDeltaRule>(ctx, narrow, make_attrs(x, form));
    const std::string what = form == Form::token ? "f32 token " : "f32 chunked ";
    expect_close(ctx, run.out, token.out, f32_tolerance, what);
    expect_close(ctx, run.d_in, token.d_in, f32_tolerance, what + "d_");
    for (const Tensor* tensor : tensors_of(run.d_in)) EXPECT_TRUE(!tensor->defined() || all_finite(ctx, *tensor));
  }
}

Tensor filled(Context& ctx, const Shape& shape, double value) { return from_vector(ctx, std::vector<double>(shape.numel(), value), shape); }

TEST(GatedDeltaRule, identical_and_zero_keys) {
  Context ctx(2);
  for (const Decay decay : {Decay::none, Decay::head, Decay::channel}) {
    for (const double beta : {0.0, 0.5, 1.0, 2.0}) {
      for (const double key : {0.0, 1.0}) {
        const Spec x{.lengths = {130, 20}, .K = 8, .V = 8, .decay = decay, .low = -0.05, .beta_low = beta, .beta_high = beta};
        Random random(4);
        Inputs in = make_inputs(ctx, random, x);
        in.k = filled(ctx, in.k.shape(), key);
        SCOPED_TRACE(::testing::Message() << "decay " << static_cast<int>(decay) << " beta " << beta << " key " << key);
        // A reflection in each token forgets no rounding error: in f32 the definition itself is off by 1.7e-5 after 130 tokens.
        expect_forms_agree(ctx, in, x, beta == 2 && key == 1 ? 3e-5 : 1e-5);
      }
    }
  }
}

TEST(GatedDeltaRule, huge_and_tiny_values) {
  Context ctx(2);
  for (const double size : {1e-12, 1e4, 1e12}) {
    const Spec x{.lengths = {70}, .K = 8, .V = 8, .low = -0.5, .size = size};
    Random random(5);
    SCOPED_TRACE(::testing::Message() << "size " << size);
    expect_forms_agree(ctx, make_inputs(ctx, random, x), x, 1e-5);
  }
  const Spec x{.lengths = {70}, .K = 8, .V = 8, .state = false};
  Random random(6);
  Inputs in = make_inputs(ctx, random, x);
  in.q = normal(ctx, random, in.q.shape(), 1e30);  // whose squares overflow
  in.k = normal(ctx, random, in.k.shape(), 1e30);
  expect_forms_agree(ctx, in, x, 1e-5);
}

TEST(GatedDeltaRule, extreme_decays_are_finite) {
  Context ctx(2);
  for (const Decay decay : {Decay::head, Decay::channel}) {
    for (const double log_decay : {-1e3, -1e30}) {
      const Spec x{.lengths = {100}, .K = 8, .V = 8, .decay = decay, .low = -0.5};
      Random random(8);
      Inputs in = make_inputs(ctx, random, x);
      for (int64_t n = 0; n < 100; n += 7)
        for (int64_t i = 0; i < in.log_decay.numel() / 100; ++i) in.log_decay.data<double>()[n * in.log_decay.numel() / 100 + i] = log_decay;
      expect_forms_agree(ctx, in, x, 1e-5);
    }
  }
}

/// A log decay that is NaN at one token of one head (in one channel, where each has its own): nothing that follows is finite, and neither the other
/// head nor the next sequence has noticed.
void expect_nan_decay_to_stay(Context& ctx, const std::vector<int64_t>& sizes, DType dtype) {
  Context host;
  for (const Decay decay : {Decay::head, Decay::channel})
    for (const int64_t K : sizes)
      for (const Form form : {Form::token, Form::chunked})
        for (const int64_t at : {0, 37, 149}) {
          SCOPED_TRACE(::testing::Message() << "K " << K << ", decay " << static_cast<int>(decay) << ", token " << at
                                            << (form == Form::token ? ", token by token" : ", chunked"));
          const Spec x{.lengths = {150, 20}, .H = 1, .HV = 2, .K = K, .V = 64, .decay = decay, .low = -0.1};
          Random random(13);
          Inputs in = make_inputs(host, random, x);
          in.log_decay.data<double>()[at * in.log_decay.numel() / 170] = std::numeric_limits<double>::quiet_NaN();
          in = in_dtype<GatedDeltaRule>(host, in, dtype, kKinds);
          for (Tensor* tensor : tensors_of(in)) *tensor = copied(ctx, *tensor);
          const auto out = apply<GatedDeltaRule>(ctx, in, make_attrs(x, form));
          const std::vector<double> o = to_vector<double>(ctx, out.o), final_state = to_vector<double>(ctx, out.final_state);
          int64_t hidden = 0, spread = 0;
          for (int64_t n = 0; n < 170; ++n)
            for (int64_t i = 0; i < 2 * x.V; ++i) {
              const bool finite = std::isfinite(o[n * 2 * x.V + i]);
              if (n >= at && n < 150 && i < x.V) hidden += finite;
              if (n >= 150 || i >= x.V) spread += !finite;
            }
          EXPECT_EQ(hidden, 0) << "outputs that should not be finite";
          EXPECT_EQ(spread, 0) << "outputs of others that should be finite";
          const auto end = final_state.begin() + K * x.V;
          EXPECT_TRUE(std::any_of(final_state.begin(), end, [](double value) { return !std::isfinite(value); }));
          EXPECT_TRUE(std::all_of(end, final_state.end(), [](double value) { return std::isfinite(value); }));
        }
}

TEST(GatedDeltaRule, nan_decay_is_not_hidden) {
  Context ctx(2);
  expect_nan_decay_to_stay(ctx, {64}, DType::f32);
}

bool register_nan_decay_on_cuda() {
  if constexpr (kWithCuda)
    for (const DType dtype : {DType::f32, DType::bf16})
      register_law("GatedDeltaRuleExtremes", dtype == DType::f32 ? "nan_decay_cuda_f32" : "nan_decay_cuda_bf16", [dtype] {
        if (cuda::num_devices() == 0) GTEST_SKIP() << "no GPU";
        Context gpu = cuda::make_context();
        expect_nan_decay_to_stay(gpu, {64, 128, 256}, dtype);
      });
  return true;
}
const bool kNanDecayOnCuda = register_nan_decay_on_cuda();

TEST(GatedDeltaRule, a_long_member) {
  Context ctx(2);
  for (const Decay decay : {Decay::none, Decay::channel}) {
    const Spec x{.lengths = {5, 100000, 1}, .H = 1, .HV = 1, .K = 4, .V = 3, .decay = decay, .low = -0.1};
    Random random(9);
    const Inputs in = make_inputs(ctx, random, x);
    const auto token = run_op<GatedDeltaRule>(ctx, in, make_attrs(x, Form::token));
    const auto chunked = run_op<GatedDeltaRule>(ctx, in, make_attrs(x, Form::chunked));
    expect_close(ctx, chunked.out, token.out, 1e-10, "");
    expect_close(ctx, chunked.d_in, token.d_in, 1e-10, "d_");
  }
}

// One lane and eight threads: chunks are prepared and finished side by side.
TEST(GatedDeltaRule, few_lanes_give_the_same_bits) {
  Context one(1), eight(8);
  for (const Decay decay : {Decay::none, Decay::head, Decay::channel}) {
    const Spec x{.lengths = {1000, 130, 0}, .H = 1, .HV = 1, .K = 16, .V = 16, .decay = decay, .low = -0.1};
    Random random(10);
    const Inputs in = in_dtype<GatedDeltaRule>(one, make_inputs(one, random, x), DType::f32, kKinds);
    const Attrs attrs = make_attrs(x, Form::chunked);
    expect_same_runs(one, run_op<GatedDeltaRule>(eight, in, attrs), run_op<GatedDeltaRule>(one, in, attrs));
  }
}

TEST(GatedDeltaRule, only_one_gradient_comes_and_one_is_wanted) {
  Context ctx(2);
  const Spec x{.lengths = {70, 3}, .HV = 4, .decay = Decay::channel};
  Random random(11);
  const Inputs in = make_inputs(ctx, random, x);
  for (const bool through_state : {false, true}) {
    Tensor expected;
    for (const Form form : {Form::token, Form::chunked}) {
      Tape tape;
      WithTape recording(ctx, &tape);
      Inputs leaves = in;
      leaves.k = tape.leaf(in.k);
      const auto out = apply<GatedDeltaRule>(ctx, leaves, make_attrs(x, form));
      const Tensor& root = through_state ? out.final_state : out.o;
      tape.backward(ctx, {root}, {filled(ctx, root.shape(), 1)});
      const Tensor d_k = tape.grad(leaves.k);
      if (expected) {
        EXPECT_LE(relative_error(ctx, d_k, expected), 1e-12);
      }
      expected = d_k;
    }
  }
}

void expect_error(Context& ctx, const Inputs& in, const Attrs& attrs, const std::string& message) {
  try {
    apply<GatedDeltaRule>(ctx, in, attrs);
    ADD_FAILURE() << "accepted; expected: " << message;
  } catch (const Error& error) {
    EXPECT_EQ(std::string(error.what()), message);
  }
}

TEST(GatedDeltaRule, errors_name_argument_expected_and_given) {
  Context ctx;
  const Spec x{.lengths = {4, 2}, .HV = 4};
  const Attrs attrs = make_attrs(x, Form::automatic);
  Random random(12);
  const Inputs good = make_inputs(ctx, random, x);
  const auto refuse = [&](auto change, const std::string& message) {
    Inputs in = good;
    change(in);
    expect_error(ctx, in, attrs, "gated_delta_rule: " + message);
  };
  const auto zeros = [&](const Shape& shape, DType dtype = DType::f64) { return Tensor::zeros(ctx, shape, dtype); };
  refuse([&](Inputs& in) { in.q = {}; }, "q must be floating [N, H, K], got nothing");
  refuse([&](Inputs& in) { in.q = zeros({6, 10}); }, "q must be floating [N, H, K], got f64 [6, 10]");
  refuse([&](Inputs& in) { in.q = zeros({6, 2, 0}); }, "q must have at least one head and one channel, got [6, 2, 0]");
  refuse([&](Inputs& in) { in.k = zeros({6, 2, 4}); }, "k must be f64 [N = 6, H = 2, K = 5], got f64 [6, 2, 4]");
  refuse([&](Inputs& in) { in.k = zeros({6, 2, 5}, DType::f32); }, "k must be f64 [N = 6, H = 2, K = 5], got f32 [6, 2, 5]");
  refuse([&](Inputs& in) { in.v = zeros({5, 4, 7}); }, "v must be f64 [N = 6, HV, V], got f64 [5, 4, 7]");
  refuse([&](Inputs& in) { in.v = zeros({6, 3, 7}); }, "v must have a multiple of H = 2 heads, got [6, 3, 7]");
  refuse([&](Inputs& in) { in.v = zeros({6, 4, 0}); }, "v must have at least one channel, got [6, 4, 0]");
  refuse([&](Inputs& in) { in.beta = zeros({6, 2}); }, "beta must be f64 [N = 6, HV = 4], got f64 [6, 2]");
  refuse([&](Inputs& in) { in.beta = zeros({6, 4}, DType::bf16); }, "beta must be f64 [N = 6, HV = 4], got bf16 [6, 4]");
  refuse([&](Inputs& in) { in.log_decay = zeros({6, 2}); }, "log_decay must be f64 [N = 6, HV = 4], got f64 [6, 2]");
  refuse([&](Inputs& in) { in.log_decay = zeros({6, 4, 7}); }, "log_decay must be f64 [N = 6, HV = 4, K = 5], got f64 [6, 4, 7]");
  refuse(
      [&](Inputs& in) {
        in.initial_state = zeros({1, 4, 5, 7});
      },
      "initial_state must be f64 [S = 2, HV = 4, K = 5, V = 7], got f64 [1, 4, 5, 7]");
  Attrs short_attrs = attrs;
  short_attrs.seqs = Sequences::single(5);
  expect_error(ctx, good, short_attrs, "gated_delta_rule: cu_seqlens must end at N = 6 tokens of q, got 5");
}

}  // namespace
}  // namespace braid
