#include "ops/recurrence/gated_linear_attention.h"

#include <cmath>
#include <limits>

#include "tests/support/neighbour_laws.h"
#include "tests/support/sequence_laws.h"

namespace braid::testing {
namespace {

using Op = GatedLinearAttention;

enum class Decay { absent, constant, head, channel };

struct Dims {
  int64_t H, K, V;
};

OpCase<Op> make_case(const std::string& name, Decay decay, const std::vector<int64_t>& lengths, Dims dims, double lowest = -1, double highest = 0,
                     bool with_state = true, double size = 1) {
  const Sequences seqs = Sequences::of_lengths(lengths);
  OpCase<Op> c;
  c.name = name;
  c.attrs.seqs = seqs;
  c.inputs = [=](Context& ctx, Random& random) {
    const int64_t N = seqs.num_tokens(), H = dims.H, K = dims.K;
    Op::Inputs in{normal(ctx, random, {N, H, K}, size), normal(ctx, random, {N, H, K}, size), normal(ctx, random, {N, H, dims.V}, size), {}, {}};
    if (decay == Decay::constant) in.log_decay = uniform(ctx, random, {H}, lowest, highest);
    if (decay == Decay::head) in.log_decay = uniform(ctx, random, {N, H}, lowest, highest);
    if (decay == Decay::channel) in.log_decay = uniform(ctx, random, {N, H, K}, lowest, highest);
    if (with_state) in.initial_state = normal(ctx, random, {seqs.count(), H, K, dims.V}, size * size);
    return in;
  };
  c.gradcheck = seqs.num_tokens() <= 60 && size == 1 && lowest > -10;
  return c;
}

/// Sizes that the tensor-core kernels are built for, sequences of several segments and members that end anywhere.
void add_tensor_core_cases(std::vector<OpCase<Op>>& cases) {
  const std::pair<Decay, std::string> kinds[] = {
      {Decay::absent, "absent"}, {Decay::constant, "constant"}, {Decay::head, "head"}, {Decay::channel, "channel"}};
  const std::vector<int64_t> packed = {300, 0, 65, 1, 520, 63};
  for (const auto& [decay, kind] : kinds) {
    cases.push_back(make_case(kind + "_segments", decay, packed, {2, 64, 128}, -0.1, 0));
    if (decay != Decay::absent) cases.push_back(make_case(kind + "_segments_strong", decay, packed, {3, 64, 64}, -30, -30));
    if (decay == Decay::absent || decay == Decay::constant) continue;
    cases.push_back(make_case(kind + "_segments_forgotten", decay, packed, {2, 64, 64}, -0.1, 0));
    cases.back().inputs = [inputs = cases.back().inputs](Context& ctx, Random& random) {
      Op::Inputs in = inputs(ctx, random);
      for (int64_t i = 0; i < in.log_decay.numel(); i += 7) in.log_decay.data<double>()[i] = -std::numeric_limits<double>::infinity();
      return in;
    };
  }
  cases.push_back(make_case("channel_segments_weak_and_strong", Decay::channel, packed, {1, 128, 64}, -30, 0, false));
  cases.push_back(make_case("channel_many_values", Decay::channel, {20, 300}, {1, 64, 512}, -0.2, 0));
  cases.push_back(make_case("head_many_keys", Decay::head, {20, 290}, {1, 512, 64}, -0.2, 0));
  cases.push_back(make_case("constant_square", Decay::constant, {70, 270}, {1, 256, 256}, -0.05, -0.01));
  cases.push_back(make_case("channel_identical_keys", Decay::channel, packed, {1, 64, 64}, -0.05, 0));
  cases.back().inputs = [inputs = cases.back().inputs](Context& ctx, Random& random) {
    Op::Inputs in = inputs(ctx, random);
    for (int64_t i = 64; i < in.k.numel(); ++i) in.k.data<double>()[i] = in.k.data<double>()[i % 64];
    return in;
  };
}

const InputKinds kKinds = {.accumulator = {"log_decay", "initial_state"}, .token = {"q", "k", "v", "log_decay"}, .state = {"initial_state"}};

std::vector<OpCase<Op>> make_cases() {
  std::vector<OpCase<Op>> cases;
  const std::pair<Decay, std::string> kinds[] = {
      {Decay::absent, "absent"}, {Decay::constant, "constant"}, {Decay::head, "head"}, {Decay::channel, "channel"}};
  for (const auto& [decay, kind] : kinds) {
    cases.push_back(make_case(kind, decay, {5, 0, 1, 19}, {2, 3, 5}));
    cases.push_back(make_case(kind + "_no_state", decay, {33}, {1, 17, 4}, -1, 0, false));
    cases.push_back(make_case(kind + "_lengths", decay, {0, 1, 15, 16, 17, 63, 64, 65, 200}, {2, 4, 6}, -0.3, 0));
    if (decay == Decay::absent) continue;
    cases.push_back(make_case(kind + "_strong", decay, {70, 3}, {2, 8, 20}, -30, -30));
    cases.push_back(make_case(kind + "_weak_and_strong", decay, {90}, {2, 18, 3}, -30, 0));
    cases.push_back(make_case(kind + "_zero", decay, {40}, {1, 4, 4}, 0, 0));
  }
  cases.push_back(make_case("step", Decay::channel, {1, 1, 1}, {2, 4, 3}));
  cases.push_back(make_case("no_tokens", Decay::head, {0, 0}, {2, 3, 4}));
  cases.push_back(make_case("tiny_values", Decay::channel, {50}, {1, 5, 5}, -1, 0, true, 1e-5));
  cases.push_back(make_case("huge_values", Decay::channel, {50}, {1, 5, 5}, -1, 0, true, 1e5));
  const std::vector<int64_t> packed = {0, 1, 63, 64, 65, 0, 127, 1, 130};
  for (const auto& [decay, kind] : kinds) {
    cases.push_back(make_case(kind + "_wide", decay, packed, {2, 64, 64}, -0.3, 0));
    cases.push_back(make_case(kind + "_oblong", decay, {70, 129}, {1, 128, 72}, -2, 0, false));
    cases.push_back(make_case(kind + "_one_chunk", decay, {64, 0, 3, 17}, {2, 40, 24}, -0.5, 0));
  }
  cases.push_back(make_case("channel_strong_wide", Decay::channel, {150, 64}, {1, 128, 64}, -30, 0));
  cases.push_back(make_case("channel_forgetful", Decay::channel, {100}, {1, 64, 64}, -30, -20));
  cases.push_back(make_case("constant_many_keys", Decay::constant, {90}, {1, 256, 40}, -0.05, -0.01));
  cases.push_back(make_case("channel_most_keys", Decay::channel, {68}, {1, 512, 12}, -0.1, 0));
  add_tensor_core_cases(cases);
  cases.push_back(make_case("scaled", Decay::head, {21, 4}, {2, 3, 2}));
  cases.back().attrs.scale = -0.7;
  return cases;
}

const bool kLaws = register_laws<Op>("GatedLinearAttention", make_cases(), kKinds);
const bool kSequenceLaws = register_sequence_laws<Op>("GatedLinearAttention", make_cases(), kKinds);
const bool kNeighbourLaws = register_neighbour_laws<Op>("GatedLinearAttention", make_cases(), kKinds);

/// Every key zero: nothing is added to the state.
OpCase<Op> with_zero_keys(OpCase<Op> c) {
  c.inputs = [inputs = c.inputs](Context& ctx, Random& random) {
    Op::Inputs in = inputs(ctx, random);
    std::fill_n(in.k.data<double>(), in.k.numel(), 0.0);
    return in;
  };
  return c;
}

/// What is extreme, at one shape that kernels for tensor cores are built for.
std::vector<OpCase<Op>> extremes_of(const std::string& name, Decay decay, const std::vector<int64_t>& lengths, Dims dims) {
  std::vector<OpCase<Op>> cases = {with_zero_keys(make_case(name + "_zero_keys", decay, lengths, dims, -0.1, 0)),
                                   make_case(name + "_tiny_values", decay, lengths, dims, -0.1, 0, true, 1e-8),
                                   make_case(name + "_huge_values", decay, lengths, dims, -0.1, 0, true, 1e8)};
  if (decay == Decay::absent) return cases;
  cases.push_back(make_case(name + "_strong", decay, lengths, dims, -30, -30));
  if (decay != Decay::constant) cases.push_back(make_case(name + "_weak_and_strong", decay, lengths, dims, -30, 0));
  return cases;
}

std::vector<OpCase<Op>> extreme_cases() {
  std::vector<OpCase<Op>> all;
  for (const auto& [decay, kind] :
       {std::pair<Decay, std::string>{Decay::absent, "absent"}, {Decay::constant, "constant"}, {Decay::head, "head"}, {Decay::channel, "channel"}})
    for (OpCase<Op>& c : extremes_of(kind + "_square", decay, {90, 20}, {decay == Decay::constant ? 2 : 1, 64, 64})) all.push_back(std::move(c));
  return all;
}

/// The widest shapes, with few tokens: ends of sequences on, before and after those of chunks.
std::vector<OpCase<Op>> wide_cases() {
  std::vector<OpCase<Op>> all;
  const std::vector<int64_t> packed = {65, 0, 1, 64, 23};
  for (const Dims dims : {Dims{2, 256, 512}, Dims{4, 128, 256}, Dims{2, 256, 256}})
    for (const auto& [decay, kind] : {std::pair<Decay, std::string>{Decay::constant, "constant"}, {Decay::channel, "channel"}}) {
      const std::string name = kind + "_" + std::to_string(dims.K) + "_by_" + std::to_string(dims.V);
      all.push_back(make_case(name, decay, packed, dims, -0.1, -0.01));
      if (dims.V == dims.K) continue;
      for (OpCase<Op>& c : extremes_of(name, decay, packed, dims)) all.push_back(std::move(c));
    }
  // Either side alone.
  all.push_back(make_case("constant_256_by_64", Decay::constant, packed, {2, 256, 64}, -0.1, -0.01));
  all.push_back(make_case("head_256_by_64", Decay::head, packed, {1, 256, 64}, -0.1, 0));
  all.push_back(make_case("absent_64_by_256", Decay::absent, packed, {1, 64, 256}));
  all.push_back(make_case("channel_64_by_256", Decay::channel, packed, {1, 64, 256}, -0.1, 0));
  return all;
}

const bool kExtremeLaws = register_laws<Op>("GatedLinearAttentionExtremes", extreme_cases(), kKinds) &&
                          register_sequence_laws<Op>("GatedLinearAttentionExtremes", extreme_cases(), kKinds);
const bool kWideLaws = register_cuda_laws<Op>("GatedLinearAttentionWide", wide_cases(), kKinds) &&
                       register_cuda_sequence_laws<Op>("GatedLinearAttentionWide", wide_cases(), kKinds);

/// Outputs and gradients of the definition, S_t = diag(a_t) S_{t-1} + k_t v_tᵀ, o_t = scale S_tᵀ q_t, in plain loops over doubles:
/// every gradient by the chain rule, one token, channel and value at a time.
struct Definition {
  std::vector<double> o, final_state, d_q, d_k, d_v, d_log_decay, d_initial_state;

  Definition(const Op::Inputs& in, const Op::Outputs& d_out, const Sequences& seqs, double scale)
      : H(in.q.size(1)), K(in.q.size(2)), V(in.v.size(2)), scale(scale), in(in) {
    o.resize(in.v.numel());
    d_q.resize(in.q.numel());
    d_k.resize(in.k.numel());
    d_v.resize(in.v.numel());
    d_log_decay.resize(in.log_decay ? in.log_decay.numel() : 0);
    final_state.resize(in.initial_state.numel());
    d_initial_state.resize(in.initial_state.numel());
    for (int64_t s = 0; s < seqs.count(); ++s)
      for (int64_t h = 0; h < H; ++h) run(seqs.begin(s), seqs.length(s), h, (s * H + h) * K * V, d_out);
  }

 private:
  int64_t decay_index(int64_t row, int64_t h, int64_t c) const { return in.log_decay.rank() == 1 ? h : in.log_decay.rank() == 2 ? row : row * K + c; }

  void run(int64_t first, int64_t length, int64_t h, int64_t state, const Op::Outputs& d_out) {
    const double *q = in.q.data<double>(), *k = in.k.data<double>(), *v = in.v.data<double>(), *d_o = d_out.o.data<double>();
    for (int64_t c = 0; c < K; ++c)
      for (int64_t j = 0; j < V; ++j) {
        std::vector<double> S = {in.initial_state.data<double>()[state + c * V + j]};
        for (int64_t t = 0; t < length; ++t) {
          const int64_t row = (first + t) * H + h;
          S.push_back(decay(row, h, c) * S.back() + k[row * K + c] * v[row * V + j]);
          o[row * V + j] += scale * q[row * K + c] * S.back();
        }
        final_state[state + c * V + j] = S.back();
        double g = d_out.final_state.data<double>()[state + c * V + j];
        for (int64_t t = length - 1; t >= 0; --t) {
          const int64_t row = (first + t) * H + h;
          g += scale * q[row * K + c] * d_o[row * V + j];
          d_q[row * K + c] += scale * S[t + 1] * d_o[row * V + j];
          d_k[row * K + c] += g * v[row * V + j];
          d_v[row * V + j] += g * k[row * K + c];
          g *= decay(row, h, c);
          if (in.log_decay) d_log_decay[decay_index(row, h, c)] += g * S[t];
        }
        d_initial_state[state + c * V + j] = g;
      }
  }
  double decay(int64_t row, int64_t h, int64_t c) const { return in.log_decay ? std::exp(in.log_decay.data<double>()[decay_index(row, h, c)]) : 1; }

  int64_t H, K, V;
  double scale;
  const Op::Inputs& in;
};

void expect_values(Context& ctx, const Tensor& actual, const std::vector<double>& expected, double tolerance, const std::string& what) {
  EXPECT_LE(relative_error(ctx, actual, from_vector(ctx, expected, actual.shape())), tolerance) << what;
}

void expect_definition(const OpCase<Op>& c, DType dtype, double tolerance) {
  Context ctx(2);
  const Op::Inputs rounded = in_dtype<Op>(ctx, case_inputs(ctx, c), dtype, kKinds), in = in_dtype<Op>(ctx, rounded, DType::f64, kKinds);
  for (Form form : {Form::token, Form::chunked}) {
    Op::Attrs attrs = c.attrs;
    attrs.form = form;
    const OpRun<Op> run = run_op<Op>(ctx, rounded, attrs);
    Op::Outputs d_out = output_gradients<Op>(ctx, run.out);
    for (Tensor* tensor : tensors_of(d_out)) *tensor = converted(ctx, converted(ctx, *tensor, dtype), DType::f64);
    const Definition expected(in, d_out, attrs.seqs, attrs.scale.value_or(1 / std::sqrt(static_cast<double>(in.q.size(2)))));
    const std::string what = c.name + (form == Form::token ? " token " : " chunked ");
    expect_values(ctx, run.out.o, expected.o, tolerance, what + "o");
    expect_values(ctx, run.out.final_state, expected.final_state, tolerance, what + "final_state");
    expect_values(ctx, run.d_in.q, expected.d_q, tolerance, what + "d_q");
    expect_values(ctx, run.d_in.k, expected.d_k, tolerance, what + "d_k");
    expect_values(ctx, run.d_in.v, expected.d_v, tolerance, what + "d_v");
    if (in.log_decay) expect_values(ctx, run.d_in.log_decay, expected.d_log_decay, tolerance, what + "d_log_decay");
    expect_values(ctx, run.d_in.initial_state, expected.d_initial_state, tolerance, what + "d_initial_state");
  }
}

TEST(GatedLinearAttention, IsItsDefinition) {
  for (Decay decay : {Decay::absent, Decay::constant, Decay::head, Decay::channel}) {
    const std::string name = "decay kind " + std::to_string(static_cast<int>(decay));
    expect_definition(make_case(name, decay, {9, 0, 1, 70}, {2, 5, 18}), DType::f64, 1e-12);
    expect_definition(make_case(name, decay, {9, 0, 1, 70}, {2, 5, 18}), DType::f32, 1e-5);
  }
}

/// Strong decay: gradients of e^-30 keep all their digits.
TEST(GatedLinearAttention, StrongDecayIsExact) {
  for (Decay decay : {Decay::constant, Decay::head, Decay::channel}) {
    const std::string name = "strong, decay kind " + std::to_string(static_cast<int>(decay));
    expect_definition(make_case(name, decay, {70}, {2, 5, 4}, -30, -30), DType::f64, 1e-12);
    expect_definition(make_case(name, decay, {70}, {2, 5, 4}, -30, -30), DType::f32, 1e-5);
    expect_definition(make_case(name, decay, {100}, {2, 5, 4}, -30, 0), DType::f64, 1e-12);
  }
}

TEST(GatedLinearAttention, HugeNegativeLogDecayForgetsEverything) {
  const double infinity = std::numeric_limits<double>::infinity();
  for (Decay decay : {Decay::constant, Decay::head, Decay::channel})
    for (double value : {-1e4, -1e30, -infinity}) {
      OpCase<Op> c = make_case("huge log decay", decay, {40, 1}, {2, 5, 4});
      c.inputs = [inputs = c.inputs, value](Context& ctx, Random& random) {
        Op::Inputs in = inputs(ctx, random);
        for (int64_t i = 0; i < in.log_decay.numel(); i += 3) in.log_decay.data<double>()[i] = value;
        return in;
      };
      expect_definition(c, DType::f64, 1e-12);
      expect_definition(c, DType::f32, 1e-5);
    }
}

/// A member of 100,000 tokens between short ones.
TEST(GatedLinearAttention, LongSequence) {
  for (Decay decay : {Decay::constant, Decay::channel})
    expect_definition(make_case("long", decay, {3, 100000, 1}, {1, 2, 3}, -0.01, 0), DType::f64, 1e-10);
}

/// Only some gradients asked for, and only one output used: the same values as with all.
TEST(GatedLinearAttention, PartialGradients) {
  Context ctx(2);
  for (Form form : {Form::token, Form::chunked}) {
    const OpCase<Op> c = make_case("", Decay::head, {20, 0, 3}, {2, 3, 4});
    const Op::Attrs attrs{c.attrs.seqs, {}, form};
    const Op::Inputs in = case_inputs(ctx, c);
    Tape tape, whole_tape;
    WithTape recording(ctx, &whole_tape);
    Op::Inputs leaves = in, some = in;
    for (Tensor* tensor : tensors_of(leaves)) *tensor = whole_tape.leaf(*tensor);
    const Op::Outputs out = apply<Op>(ctx, leaves, attrs);
    const Tensor seed = contiguous(ctx, in.initial_state);
    whole_tape.backward(ctx, {out.o, out.final_state}, {Tensor::zeros(ctx, out.o.shape(), DType::f64), seed});
    ctx.tape = &tape;
    some.k = tape.leaf(in.k);
    tape.backward(ctx, apply<Op>(ctx, some, attrs).final_state, seed);
    EXPECT_TRUE(same_bits(ctx, tape.grad(some.k), whole_tape.grad(leaves.k)));
  }
}

void expect_error(const Op::Inputs& in, const Op::Attrs& attrs, const std::string& message) {
  Context ctx(1);
  try {
    apply<Op>(ctx, in, attrs);
    ADD_FAILURE() << "accepted, although: " << message;
  } catch (const Error& error) {
    EXPECT_EQ("gated_linear_attention: " + message, error.what());
  }
}

TEST(GatedLinearAttention, Errors) {
  Context ctx(1);
  const auto zeros = [&](const Shape& shape, DType dtype = DType::f32) { return Tensor::zeros(ctx, shape, dtype); };
  const Tensor q = zeros({4, 2, 3}), v = zeros({4, 2, 5});
  const Op::Attrs attrs{Sequences::single(4), {}, Form::automatic};
  expect_error({q, zeros({4, 2, 2}), v, {}, {}}, attrs, "k must be f32 [N = 4, H = 2, K = 3], got f32 [4, 2, 2]");
  expect_error({q, q, zeros({3, 2, 5}), {}, {}}, attrs, "v must be f32 [N = 4, H = 2, V], got f32 [3, 2, 5]");
  expect_error({q, zeros({4, 2, 3}, DType::f64), v, {}, {}}, attrs, "k must be f32 [N = 4, H = 2, K = 3], got f64 [4, 2, 3]");
  expect_error({q, q, v, zeros({3}), {}}, attrs, "log_decay must be f32 [H = 2], got f32 [3]");
  expect_error({q, q, v, zeros({4, 3}), {}}, attrs, "log_decay must be f32 [N = 4, H = 2], got f32 [4, 3]");
  expect_error({q, q, v, v, {}}, attrs, "log_decay must be f32 [N = 4, H = 2, K = 3], got f32 [4, 2, 5]");
  expect_error({q, q, v, {}, zeros({1, 2, 5, 3})}, attrs, "initial_state must be f32 [S = 1, H = 2, K = 3, V = 5], got f32 [1, 2, 5, 3]");
  expect_error({q, q, v, {}, {}}, {Sequences::single(3), {}, Form::automatic}, "cu_seqlens must end at N = 4 tokens of q, got 3");
  expect_error({q, q, v, {}, {}}, {Sequences::single(4), std::nan(""), Form::automatic}, "scale must be finite, got nan");
}

}  // namespace
}  // namespace braid::testing
