// Cases of the delta rule's laws at shapes that have kernels for tensor cores: keys of zeros, values huge and tiny, tokens that forget everything.
#pragma once
#include "tests/ops/gated_delta_rule_cases.h"

namespace braid::delta_cases {

/// `change` is done to the inputs of long_case.
inline OpCase<GatedDeltaRule> changed_case(const std::string& name, const Spec& x, std::function<void(Context&, Random&, Inputs&)> change) {
  OpCase<GatedDeltaRule> result = long_case(name, x);
  result.inputs = [x, change = std::move(change)](Context& ctx, Random& random) {
    Inputs in = make_inputs(ctx, random, x);
    change(ctx, random, in);
    return in;
  };
  return result;
}

inline void set_rows(const Tensor& tensor, int64_t first, int64_t stride, double value) {
  const int64_t width = tensor.numel() / tensor.size(0);
  for (int64_t n = first; n < tensor.size(0); n += stride)
    for (int64_t i = 0; i < width; ++i) tensor.data<double>()[n * width + i] = value;
}

/// Every key zero: nothing is written.
inline OpCase<GatedDeltaRule> zero_keys_case(const std::string& name, const Spec& x) {
  return changed_case(name, x, [](Context&, Random&, Inputs& in) { set_rows(in.k, 0, 1, 0); });
}
/// Every third key zero, and every fifth query.
inline OpCase<GatedDeltaRule> some_zero_keys_case(const std::string& name, const Spec& x) {
  return changed_case(name, x, [](Context&, Random&, Inputs& in) { set_rows(in.k, 1, 3, 0), set_rows(in.q, 2, 5, 0); });
}
/// q and k of a size whose squares overflow.
inline OpCase<GatedDeltaRule> huge_keys_case(const std::string& name, const Spec& x) {
  return changed_case(name, x, [](Context& ctx, Random& random, Inputs& in) {
    in.q = normal(ctx, random, in.q.shape(), 1e30), in.k = normal(ctx, random, in.k.shape(), 1e30);
  });
}
/// Every seventh token forgets everything, several in a chunk; not the first, whose state should have a gradient.
inline OpCase<GatedDeltaRule> some_forgotten_case(const std::string& name, const Spec& x, double log_decay) {
  return changed_case(name, x, [log_decay](Context&, Random&, Inputs& in) { set_rows(in.log_decay, 3, 7, log_decay); });
}

inline std::vector<OpCase<GatedDeltaRule>> extreme_cases() {
  using enum Decay;
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const std::vector<int64_t> two = {130, 20};
  const Spec head_of_64{.lengths = two, .H = 1, .HV = 1, .K = 64, .V = 64, .low = -0.1};
  const auto with = [&](auto change) {
    Spec x = head_of_64;
    change(x);
    return x;
  };
  const Spec none_of_128 = with([](Spec&x) { x.K = 128, x.decay = none; }), wide = with([](Spec&x) { x.K = 256; });
  const Spec channel_of_64 = with([](Spec&x) { x.decay = channel; }), channel_of_128 = with([](Spec&x) { x.K = 128, x.decay = channel; });
  const auto no_norm = [](Spec x) {
    x.l2norm = false, x.size = 0.1;
    return x;
  };
  const auto of_size = [](Spec x, double size) {
    x.size = size;
    return x;
  };
  const auto without_state = [](Spec x) {
    x.state = false;
    return x;
  };
  return {
      zero_keys_case("chunks_zero_keys", head_of_64),
      zero_keys_case("chunks_zero_keys_none", none_of_128),
      zero_keys_case("chunks_zero_keys_wide", wide),
      zero_keys_case("chunks_zero_keys_no_norm", no_norm(head_of_64)),
      zero_keys_case("channel_zero_keys", channel_of_64),
      zero_keys_case("channel_zero_keys_no_norm", no_norm(channel_of_128)),
      some_zero_keys_case("chunks_some_zero_keys", with([](Spec& x) { x.HV = 2; })),
      some_zero_keys_case("chunks_some_zero_keys_none", none_of_128),
      some_zero_keys_case("channel_some_zero_keys", channel_of_64),
      long_case("chunks_large_values", of_size(head_of_64, 1e4)),
      long_case("chunks_huge_values", of_size(head_of_64, 1e12)),
      long_case("chunks_huge_values_none", of_size(none_of_128, 1e12)),
      long_case("channel_huge_values", of_size(channel_of_64, 1e12)),
      // Keys of no length write nothing, and every token of a head has one d_log_decay, Σ S dS, which may happen to be small: hence many heads.
      long_case("chunks_tiny_values", of_size(with([](Spec& x) { x.HV = 16; }), 1e-12)),
      long_case("channel_tiny_values", of_size(channel_of_128, 1e-12)),
      huge_keys_case("chunks_huge_keys", without_state(head_of_64)),
      huge_keys_case("chunks_huge_keys_wide", wide),
      huge_keys_case("channel_huge_keys", channel_of_64),
      some_forgotten_case("chunks_some_forgotten", head_of_64, -1e3),
      some_forgotten_case("chunks_some_emptied", with([](Spec& x) { x.K = 128, x.HV = 2; }), -1e30),
      some_forgotten_case("chunks_some_infinite", wide, -kInfinity),
      some_forgotten_case("channel_some_forgotten", channel_of_64, -1e3),
      some_forgotten_case("channel_some_emptied", channel_of_128, -1e30),
  };
}

}  // namespace braid::delta_cases
