// Small models for tests: random parameters, a batch, its loss and gradients.
#pragma once
#include <map>
#include <nlohmann/json.hpp>

#include "models/hybrid_lm.h"
#include "tests/support/random_tensors.h"

namespace braid::testing {

using NamedConfigs = std::map<std::string, ModelConfig>;

/// Every family pure and with one attention layer of three, and the settings that change what a mixer computes.
inline NamedConfigs small_configs() {
  using nlohmann::json;
  NamedConfigs configs;
  const auto add = [&](const std::string& name, const std::string& type, const json& more) {
    json object = {{"model_type", type}, {"hidden_size", 16}, {"num_hidden_layers", 3}, {"vocab_size", 23}, {"intermediate_size", 20}};
    if (type == "hgrn2") object["expand_ratio"] = 4;
    else if (type != "hgrn") object["num_heads"] = 2;
    if (type == "gated_deltanet") object.update({{"head_dim", 6}, {"expand_v", 1.5}});
    object.update(more);
    configs[name] = parse_config(object);
  };
  const json attn = {{"layers", {1}}, {"num_heads", 4}, {"num_kv_heads", 2}};
  for (Family family : kFamilies) {
    const std::string type(to_string(family));
    add(type, type, json::object());
    if (family == Family::transformer) continue;
    add(type + "_hybrid", type, {{"attn", attn}});
    add(type + "_conv_flipped", type, {{"use_short_conv", !configs[type].use_short_conv}, {"conv_size", 3}, {"tie_word_embeddings", true}});
  }
  add("transformer_all", "transformer", {{"num_kv_heads", 1}, {"qkv_bias", true}, {"qk_norm", true}, {"window_size", 3}, {"rope_theta", 500}});
  json window = attn;
  window.update({{"window_size", 4}, {"qkv_bias", true}, {"qk_norm", true}});
  add("gla_all", "gla", {{"attn", window}, {"num_kv_heads", 1}, {"use_output_gate", false}, {"clamp_min", -0.05}, {"gate_logit_normalizer", 8}});
  add("retnet_groups", "retnet", {{"num_kv_heads", 1}, {"use_short_conv", true}, {"fuse_norm", false}});
  add("hgrn_wide", "hgrn", {{"use_lower_bound", false}, {"expand_ratio", 1.5}});
  add("hgrn2_free", "hgrn2", {{"use_lower_bound", false}});
  add("delta_net_all", "delta_net", {{"use_gate", true}, {"allow_neg_eigval", true}, {"qk_activation", "identity"}});
  add("delta_net_no_beta", "delta_net", {{"use_beta", false}});
  add("gated_deltanet_values", "gated_deltanet", {{"num_v_heads", 4}, {"use_gate", false}, {"allow_neg_eigval", true}});
  return configs;
}

/// First values drawn larger than for training, and nothing left at its neutral value, so that every path matters.
inline void fill(Context& ctx, const HybridLm& model, DType dtype = DType::f64) {
  Random random(3);
  initialize(ctx, model, DType::f64, 0.3, 3);
  for (Parameter* parameter : model.parameters()) {
    const std::vector<double> value = to_vector<double>(ctx, parameter->value),
                              noise = to_vector<double>(ctx, normal(ctx, random, parameter->shape, 0.3));
    std::vector<double> sum(value.size());
    for (size_t i = 0; i < sum.size(); ++i) sum[i] = value[i] + noise[i];
    parameter->value = converted(ctx, from_vector(ctx, sum, parameter->shape), dtype);
  }
}

struct Packed {
  std::vector<int64_t> tokens;
  Sequences seqs;
};

inline Packed random_tokens(int64_t vocab, const std::vector<int64_t>& lengths) {
  Random random(5);
  Packed batch{{}, Sequences::of_lengths(lengths)};
  for (int64_t i = 0; i < batch.seqs.num_tokens(); ++i) batch.tokens.push_back(static_cast<int64_t>(random.below(vocab)));
  return batch;
}

inline Tensor token_tensor(Context& ctx, const std::vector<int64_t>& tokens) {
  return from_vector(ctx, tokens, {static_cast<int64_t>(tokens.size())});
}

/// The loss of the next tokens; with `record`, gradients are left in the parameters.
inline LossOutput run_loss(Context& ctx, const HybridLm& model, const Packed& batch, bool record, const LossOptions& options = {}) {
  const Tensor tokens = token_tensor(ctx, batch.tokens), targets = token_tensor(ctx, next_token_targets(batch.tokens, batch.seqs));
  if (!record) return model.loss(ctx, tokens, targets, batch.seqs, options);
  zero_grads(ctx, model);
  Tape tape;
  LossOutput out;
  {
    WithTape recording(ctx, &tape);
    out = model.loss(ctx, tokens, targets, batch.seqs, options);
  }
  tape.backward(ctx, out.loss);
  return out;
}

}  // namespace braid::testing
