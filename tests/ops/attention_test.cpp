#include "ops/attention.h"

#include <cmath>

#include "tests/support/neighbour_laws.h"

namespace braid::testing {
namespace {

struct Heads {
  int64_t H, HK, D, DV;
};

struct Setting {
  std::string name;
  std::vector<int64_t> q_lengths, k_lengths;  // no k_lengths: those of the queries
  Heads heads;
  int64_t window = 0;
  double scale = 1;  // of the values of q and k
};

int64_t sum(const std::vector<int64_t>& lengths) {
  int64_t total = 0;
  for (int64_t length : lengths) total += length;
  return total;
}

Attention::Attrs attrs_of(const Setting& setting) {
  Attention::Attrs attrs{.q_seqs = Sequences::of_lengths(setting.q_lengths)};
  if (!setting.k_lengths.empty()) attrs.k_seqs = Sequences::of_lengths(setting.k_lengths);
  attrs.window = setting.window;
  return attrs;
}

Attention::Inputs inputs_of(Context& ctx, Random& random, const Setting& setting) {
  const auto [H, HK, D, DV] = setting.heads;
  const int64_t Nq = sum(setting.q_lengths), Nk = setting.k_lengths.empty() ? Nq : sum(setting.k_lengths);
  return {normal(ctx, random, {Nq, H, D}, setting.scale), normal(ctx, random, {Nk, HK, D}, setting.scale), normal(ctx, random, {Nk, HK, DV})};
}

const std::vector<Setting> kSettings = {
    {"packed", {5, 0, 1, 9}, {}, {2, 2, 4, 4}},
    {"grouped", {6, 3}, {}, {6, 2, 4, 3}},
    {"one_key_head", {7}, {}, {3, 1, 5, 2}},
    {"window", {10, 0, 2}, {}, {2, 1, 4, 4}, 3},
    {"window_of_one", {4, 3}, {}, {1, 1, 4, 4}, 1},
    {"window_longer_than_all", {6}, {}, {2, 2, 4, 4}, 100},
    {"cached_keys", {2, 0, 1, 3}, {6, 4, 5, 3}, {2, 1, 4, 3}},
    {"cached_keys_window", {2, 1}, {9, 7}, {2, 2, 4, 4}, 4},
    {"blocks", {150, 64, 65}, {}, {2, 1, 8, 8}},
    {"blocks_window", {300}, {}, {1, 1, 8, 8}, 70},
    {"blocks_cached", {70}, {300}, {2, 2, 8, 4}},
    {"no_tokens", {0, 0}, {}, {2, 2, 4, 4}},
    {"one_token", {1}, {}, {2, 2, 4, 4}},
};

// Head dimensions that kernels are built for and lengths around their tiles; too large for differences.
const std::vector<Setting> kKernelSettings = {
    {"heads_of_64", {0, 1, 63, 64, 65, 130}, {}, {4, 2, 64, 64}},
    {"heads_of_128", {129, 1, 0, 200}, {}, {2, 1, 128, 128}},
    {"heads_of_256", {33, 100}, {}, {2, 1, 256, 256}},
    {"heads_of_64_window", {300, 65}, {}, {2, 1, 64, 64}, 100},
    {"heads_of_64_short_window", {130, 0, 65}, {}, {2, 1, 64, 64}, 40},
    {"heads_of_128_short_window", {1, 130, 66}, {}, {2, 1, 128, 128}, 70},
    {"heads_of_256_short_window", {100, 33}, {}, {2, 1, 256, 256}, 50},
    {"heads_of_128_cached_window", {70, 1, 0}, {200, 129, 64}, {2, 2, 128, 128}, 90},
    {"heads_of_64_cached", {1, 65, 2}, {300, 70, 2}, {4, 1, 64, 64}},
    {"heads_of_200", {90}, {}, {2, 2, 200, 130}},
    {"heads_of_128_many_tiles", {5, 1100}, {}, {2, 1, 128, 128}},
    {"heads_of_64_many_tiles_window", {901, 3, 700}, {}, {2, 2, 64, 64}, 333},
    {"heads_of_256_many_tiles", {400}, {}, {2, 1, 256, 256}},
    {"heads_of_128_later_queries", {300, 130}, {1000, 131}, {3, 1, 128, 128}},
    {"heads_of_128_many_tiles_window_grouped", {700, 0, 5, 260}, {}, {4, 2, 128, 128}, 200},
    {"heads_of_64_many_tiles_later_queries", {0, 333, 0, 66}, {200, 800, 0, 450}, {4, 1, 64, 64}},
    {"heads_of_128_window_later_queries", {150, 0, 333}, {555, 140, 340}, {2, 1, 128, 128}, 129},
    {"decoding_64", {1, 0, 2, 1}, {2000, 3, 70, 1}, {8, 2, 64, 64}},
    {"decoding_128", {1, 3}, {777, 1500}, {4, 4, 128, 128}},
    {"decoding_128_window", {1, 1}, {900, 40}, {6, 2, 128, 128}, 200},
    {"decoding_256", {1, 20}, {600, 300}, {3, 1, 256, 256}},
};

std::vector<OpCase<Attention>> cases() {
  std::vector<OpCase<Attention>> list;
  for (const Setting& setting : kSettings)
    list.push_back({.name = setting.name,
                    .inputs = [setting](Context& ctx, Random& random) { return inputs_of(ctx, random, setting); },
                    .attrs = attrs_of(setting)});
  for (const Setting& setting : kKernelSettings)
    list.push_back({.name = setting.name,
                    .inputs = [setting](Context& ctx, Random& random) { return inputs_of(ctx, random, setting); },
                    .attrs = attrs_of(setting),
                    .gradcheck = false});
  list.push_back({.name = "given_scale",
                  .inputs = [](Context& ctx, Random& random) { return inputs_of(ctx, random, kSettings[0]); },
                  .attrs = {.q_seqs = Sequences::of_lengths(kSettings[0].q_lengths), .scale = 0.3}});
  return list;
}
const bool kLaws = register_laws<Attention>("Attention", cases());
const bool kNeighbourLaws = register_neighbour_laws<Attention>("Attention", cases(), {.token = {"q", "k", "v"}});

/// The definition, one query at a time.
Attention::Outputs defined(Context& ctx, const Attention::Inputs& in, const Attention::Attrs& attrs) {
  const int64_t Nq = in.q.size(0), H = in.q.size(1), D = in.q.size(2), HK = in.k.size(1), DV = in.v.size(2);
  Attention::Outputs out{Tensor::zeros(ctx, {Nq, H, DV}, DType::f64), Tensor::zeros(ctx, {Nq, H}, DType::f64)};
  const double *q = in.q.data<double>(), *k = in.k.data<double>(), *v = in.v.data<double>();
  const Sequences& keys = attrs.k_seqs.count() == 0 ? attrs.q_seqs : attrs.k_seqs;
  const double scale = attrs.scale ? *attrs.scale : 1 / std::sqrt(static_cast<double>(D));
  for (int64_t s = 0; s < attrs.q_seqs.count(); ++s)
    for (int64_t n = attrs.q_seqs.begin(s); n < attrs.q_seqs.end(s); ++n)
      for (int64_t h = 0; h < H; ++h) {
        const int64_t hk = h * HK / H, p = keys.end(s) - (attrs.q_seqs.end(s) - n);
        const int64_t first = attrs.window > 0 ? std::max(keys.begin(s), p - attrs.window + 1) : keys.begin(s);
        std::vector<double> logits;
        for (int64_t j = first; j <= p; ++j) {
          double dot = 0;
          for (int64_t d = 0; d < D; ++d) dot += q[(n * H + h) * D + d] * k[(j * HK + hk) * D + d];
          logits.push_back(scale * dot);
        }
        const double highest = *std::max_element(logits.begin(), logits.end());
        double total = 0;
        for (double logit : logits) total += std::exp(logit - highest);
        out.lse.data<double>()[n * H + h] = highest + std::log(total);
        for (int64_t j = first; j <= p; ++j)
          for (int64_t d = 0; d < DV; ++d)
            out.o.data<double>()[(n * H + h) * DV + d] += std::exp(logits[j - first] - highest) / total * v[(j * HK + hk) * DV + d];
      }
  return out;
}

TEST(Attention, IsTheDefinition) {
  Context ctx(2);
  for (Setting setting : kSettings) {
    for (double scale : {1.0, 10.0}) {
      Random random(3);
      setting.scale = scale;
      const Attention::Inputs in = inputs_of(ctx, random, setting);
      const Attention::Attrs attrs = attrs_of(setting);
      expect_close(ctx, apply<Attention>(ctx, in, attrs), defined(ctx, in, attrs), 1e-13, setting.name + " ");
    }
  }
}

TEST(Attention, PackedIsEachSequenceAlone) {
  Context ctx(2);
  Random random(3);
  const Setting setting{"", {3, 0, 70, 1}, {}, {4, 2, 8, 4}, 40};
  const Attention::Inputs in = inputs_of(ctx, random, setting);
  const Attention::Attrs attrs = attrs_of(setting);
  const OpRun<Attention> whole = run_op<Attention>(ctx, in, attrs);
  const Attention::Outputs d_out = output_gradients<Attention>(ctx, whole.out);
  for (int64_t s = 0; s < attrs.q_seqs.count(); ++s) {
    const auto part = [&](const Tensor& tensor) { return contiguous(ctx, tensor.slice(0, attrs.q_seqs.begin(s), attrs.q_seqs.end(s))); };
    Tape tape;
    WithTape recording(ctx, &tape);
    const Attention::Inputs leaves{tape.leaf(part(in.q)), tape.leaf(part(in.k)), tape.leaf(part(in.v))};
    const Attention::Outputs out = apply<Attention>(ctx, leaves, {.q_seqs = Sequences::single(attrs.q_seqs.length(s)), .window = 40});
    tape.backward(ctx, {out.o, out.lse}, {part(d_out.o), part(d_out.lse)});
    expect_close(ctx, out, {part(whole.out.o), part(whole.out.lse)}, 1e-14, "");
    expect_close<Attention::Inputs>(ctx, {tape.grad(leaves.q), tape.grad(leaves.k), tape.grad(leaves.v)},
                                    {part(whole.d_in.q), part(whole.d_in.k), part(whole.d_in.v)}, 1e-14, "d_");
  }
}

TEST(Attention, DecodingWithACacheIsTheFullForward) {
  Context ctx(2);
  for (int64_t window : {0, 5}) {
    Random random(4);
    const int64_t T = 20, prefill = 13;
    const Attention::Inputs in = inputs_of(ctx, random, {"", {T}, {}, {4, 2, 8, 8}});
    const Tensor whole = apply<Attention>(ctx, in, {.q_seqs = Sequences::single(T), .window = window}).o;
    for (int64_t begin = 0; begin < T; begin += begin ? 1 : prefill) {
      const int64_t end = begin ? begin + 1 : prefill;
      const Attention::Inputs part{in.q.slice(0, begin, end), in.k.slice(0, 0, end), in.v.slice(0, 0, end)};
      const Attention::Attrs attrs{.q_seqs = Sequences::single(end - begin), .k_seqs = Sequences::single(end), .window = window};
      EXPECT_LE(relative_error(ctx, apply<Attention>(ctx, part, attrs).o, whole.slice(0, begin, end)), 1e-14) << begin;
    }
  }
}

TEST(Attention, HugeLogitsPickOneKey) {
  Context ctx(2);
  for (DType dtype : {DType::f64, DType::f32}) {
    const std::vector<double> axis = {100, -100, 99, 101, -101};  // logits of ±1e4, none equal
    const Tensor q = converted(ctx, from_vector<double>(ctx, {100, 100, 100, -100, -100}, {5, 1, 1}), dtype);
    const Tensor k = converted(ctx, from_vector<double>(ctx, axis, {5, 1, 1}), dtype);
    const Tensor v = converted(ctx, from_vector<double>(ctx, {1, 2, 3, 4, 5}, {5, 1, 1}), dtype);
    const OpRun<Attention> run = run_op<Attention>(ctx, {q, k, v}, {.q_seqs = Sequences::single(5)});
    EXPECT_EQ(to_vector<double>(ctx, run.out.o), (std::vector<double>{1, 1, 1, 2, 5}));
    EXPECT_EQ(to_vector<double>(ctx, run.out.lse), (std::vector<double>{1e4, 1e4, 1e4, 1e4, 10100}));
    for (const Tensor* d : tensors_of(run.d_in)) EXPECT_TRUE(all_finite(ctx, *d));
  }
}

TEST(Attention, OneKeyLeavesNothingToChoose) {
  Context ctx(2);
  Random random(6);
  for (const int64_t window : {0, 1}) {
    const Attention::Attrs attrs{.q_seqs = window ? Sequences::single(70) : Sequences::of_lengths(std::vector<int64_t>(70, 1)), .window = window};
    const Attention::Inputs in = inputs_of(ctx, random, {"", {70}, {}, {4, 2, 16, 24}});
    Tape tape;
    WithTape recording(ctx, &tape);
    const Tensor q = tape.leaf(in.q), k = tape.leaf(in.k);
    const Attention::Outputs out = apply<Attention>(ctx, {q, k, in.v}, attrs);
    tape.backward(ctx, {out.o}, {normal(ctx, random, out.o.shape())});
    for (const Tensor& d : {tape.grad(q), tape.grad(k)})
      for (const double value : to_vector<double>(ctx, d)) EXPECT_EQ(value, 0);
  }
}

TEST(Attention, NaNIsNotHidden) {
  Context ctx;
  Random random(5);
  const Attention::Inputs in = inputs_of(ctx, random, {"", {20}, {}, {1, 1, 4, 4}});
  in.k.data<double>()[3 * 4] = std::numeric_limits<double>::quiet_NaN();
  const std::vector<double> o = to_vector<double>(ctx, apply<Attention>(ctx, in, {.q_seqs = Sequences::single(20)}).o);
  for (int n = 0; n < 20; ++n) EXPECT_EQ(std::isnan(o[n * 4]), n >= 3) << n;
}

void expect_refusal(const Attention::Inputs& in, const Attention::Attrs& attrs, const std::string& message) {
  Context ctx;
  try {
    apply<Attention>(ctx, in, attrs);
    ADD_FAILURE() << "accepted; expected: " << message;
  } catch (const Error& error) {
    EXPECT_EQ(error.what(), message);
  }
}

TEST(Attention, SaysWhatIsWrong) {
  Context ctx;
  Random random(3);
  const Tensor two = normal(ctx, random, {4, 2, 8}), three = normal(ctx, random, {4, 3, 8}), longer = normal(ctx, random, {6, 2, 8});
  const Attention::Attrs four{.q_seqs = Sequences::single(4)};
  expect_refusal({three, two, two}, four, "attention: q must have a multiple of the HK = 2 heads of k, got H = 3");
  expect_refusal({two, normal(ctx, random, {4, 2, 7}), two}, four, "attention: k must be f64 [Nk, HK, D = 8], got f64 [4, 2, 7]");
  expect_refusal({two, two, three}, four, "attention: v must be f64 [Nk = 4, HK = 2, DV], got f64 [4, 3, 8]");
  expect_refusal({two, two, {}}, four, "attention: v must be f64 [Nk = 4, HK = 2, DV], got nothing");
  expect_refusal({two, two, two}, {.q_seqs = Sequences::single(3)}, "attention: cu_seqlens must end at N = 4 tokens of q, got 3");
  expect_refusal({two, longer, longer}, four, "attention: cu_seqlens must end at N = 6 tokens of k, got 4");
  expect_refusal({two, two, two}, {.q_seqs = Sequences::single(4), .window = -1}, "attention: window must not be negative, got -1");
  expect_refusal({longer, two, two}, {.q_seqs = Sequences::of_lengths({1, 5}), .k_seqs = Sequences::of_lengths({1, 3})},
                 "attention: k_seqs must have at least as many tokens as q_seqs, 5 in sequence 1, got 3");
  expect_refusal({two, two, two}, {.q_seqs = Sequences::single(4), .k_seqs = Sequences::of_lengths({2, 2})},
                 "attention: k_seqs must have S = 1 sequences like q_seqs, got 2");
}

}  // namespace
}  // namespace braid::testing
