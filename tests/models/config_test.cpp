#include "models/config.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "core/error.h"
#include "models/presets.h"

namespace braid {
namespace {

using nlohmann::json;

json small(const std::string& model_type) {
  json object = {{"model_type", model_type}, {"hidden_size", 32}, {"num_hidden_layers", 3}, {"vocab_size", 61}, {"intermediate_size", 48}};
  if (model_type == "hgrn2") object["expand_ratio"] = 8;
  else if (model_type != "hgrn") object["num_heads"] = 2;
  if (model_type == "gated_deltanet") object["head_dim"] = 16;
  return object;
}

std::string error_of(const json& object) {
  try {
    parse_config(object);
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

/// Parsing `object` fails with one line that holds every one of `parts`.
void expect_error(const json& object, const std::vector<std::string>& parts) {
  const std::string message = error_of(object);
  for (const std::string& part : parts) EXPECT_NE(message.find(part), std::string::npos) << "'" << part << "' is not in: " << message;
  EXPECT_EQ(message.find('\n'), std::string::npos) << message;
}

json with(json object, const std::string& key, json value) {
  object[key] = std::move(value);
  return object;
}

const json kAttn = {{"layers", {2}}, {"num_heads", 4}, {"num_kv_heads", 2}};

TEST(Config, DefaultsAreThoseOfFla) {
  const ModelConfig gdn = parse_config(json{{"model_type", "gated_deltanet"}});
  EXPECT_EQ(gdn.hidden_size, 2048);
  EXPECT_EQ(gdn.num_hidden_layers, 21);
  EXPECT_EQ(gdn.num_heads, 6);
  EXPECT_EQ(gdn.num_v_heads, 6);
  EXPECT_EQ(gdn.head_dim, 256);
  EXPECT_EQ(gdn.expand_v, 2);
  EXPECT_TRUE(gdn.use_gate && gdn.use_short_conv);
  const ModelConfig retnet = parse_config(json{{"model_type", "retnet"}});
  EXPECT_EQ(retnet.num_heads, 8);
  EXPECT_EQ(retnet.mlp_width(), 2816);
  const ModelConfig hgrn2 = parse_config(json{{"model_type", "hgrn2"}, {"hidden_size", 1024}});
  EXPECT_EQ(hgrn2.num_heads, 8);
  EXPECT_EQ(parse_config(json{{"model_type", "hgrn2"}, {"hidden_size", 1024}, {"expand_ratio", nullptr}, {"num_heads", 4}}).expand_ratio, 256);
  const ModelConfig transformer = parse_config(json{{"model_type", "transformer"}});
  EXPECT_EQ(transformer.attn.at(0).num_heads, 32);
  EXPECT_EQ(transformer.num_attention_layers(), 24);
  EXPECT_EQ(transformer.mlp_width(), 5632);
}

TEST(Config, AKeyThatIsNearlyKnownIsAMistake) {
  expect_error(with(small("gla"), "hiden_size", 64), {"\"hiden_size\"", "hidden_size"});
  expect_error(with(small("gla"), "num_head", 64), {"\"num_head\"", "num_heads"});
  expect_error(with(small("gated_deltanet"), "vocabsize", 64), {"\"vocabsize\"", "vocab_size"});
  expect_error(with(small("transformer"), "rope_tetha", 64), {"\"rope_tetha\"", "rope_theta"});
  expect_error(with(small("hgrn"), "atn", nullptr), {"\"atn\"", "attn"});
  expect_error(with(small("hgrn"), "tie_word_embedding", true), {"tie_word_embeddings"});
  expect_error(with(small("hgrn"), "hiden\nsize", true), {"hidden_size"});
}

TEST(Config, OthersKeysAreIgnoredAndListed) {
  const std::vector<std::string> others = {"_name_or_path",      "attn_mode",   "auto_map",           "cls_token_id", "dtype",
                                           "fuse_cross_entropy", "fuse_swiglu", "num_beams",          "return_dict",  "transformers_version",
                                           "use_cache",          "use_rope",    "num_attention_heads"};
  for (const char* type : {"transformer", "hgrn", "retnet", "gla", "hgrn2", "delta_net", "gated_deltanet"}) {
    json object = small(type);
    EXPECT_TRUE(ignored_keys(to_json(parse_config(object))).empty()) << type;
    for (const std::string& key : others) object[key] = "anything";
    EXPECT_EQ(parse_config(object), parse_config(small(type)));
    std::vector<std::string> sorted = others;
    std::sort(sorted.begin(), sorted.end());
    EXPECT_EQ(ignored_keys(object), sorted);
    object["torch_dtype"] = "float32";
    for (const char* key : {"expand_k", "num_v_heads", "head_dim"}) object[key] = small(type).value(key, 1);  // some other family's
    EXPECT_EQ(ignored_keys(object), sorted);
  }
}

TEST(Config, RoundTrip) {
  std::vector<ModelConfig> configs;
  for (const std::string& name : preset_names()) configs.push_back(preset(name));
  for (Family family : kFamilies) {
    json object = small(std::string(to_string(family)));
    object.update({{"tie_word_embeddings", true}, {"norm_eps", 1e-5}, {"use_short_conv", false}, {"eos_token_id", nullptr}, {"pad_token_id", 3}});
    if (family != Family::transformer)
      object["attn"] = {{{"layers", {0}}, {"num_heads", 4}, {"window_size", 7}, {"qkv_bias", true}},
                        {{"layers", {2}}, {"num_heads", 2}, {"num_kv_heads", 1}, {"qk_norm", true}, {"rope_theta", 5e5}}};
    else object.update({{"num_kv_heads", 1}, {"window_size", 5}, {"qkv_bias", true}, {"qk_norm", true}});
    if (family == Family::gla) object.update({{"clamp_min", -0.5}, {"gate_logit_normalizer", 8}, {"num_kv_heads", 1}, {"use_output_gate", false}});
    if (family == Family::delta_net) object.update({{"allow_neg_eigval", true}, {"use_beta", false}, {"qk_activation", "identity"}});
    if (family == Family::gated_deltanet) object.update({{"num_v_heads", 4}, {"expand_v", 1.5}, {"use_gate", false}});
    if (family == Family::hgrn) object.update({{"use_lower_bound", false}, {"expand_ratio", 1.5}});
    configs.push_back(parse_config(object));
  }
  for (const ModelConfig& config : configs) {
    const json written = to_json(config);
    EXPECT_EQ(parse_config(written), config) << written.dump();
    EXPECT_EQ(parse_config(std::string_view(written.dump())), config);
  }
}

TEST(Config, KeysOfOtherImplementationsAreIgnored) {
  json object = small("gla");
  const ModelConfig plain = parse_config(object);
  object.update({{"attn_mode", "chunk"},
                 {"fuse_cross_entropy", true},
                 {"torch_dtype", "bfloat16"},
                 {"transformers_version", "4.51.3"},
                 {"architectures", {"GLAForCausalLM"}},
                 {"use_cache", true},
                 {"elementwise_affine", true},
                 {"feature_map", nullptr}});
  EXPECT_EQ(parse_config(object), plain);
}

TEST(Config, FamilyAndWholeModel) {
  expect_error(json::array(), {"config.json", "object", "[]"});
  expect_error(json::object(), {"model_type", "missing", "gated_deltanet"});
  expect_error({{"model_type", "mamba9"}}, {"model_type", "transformer, hgrn", "\"mamba9\""});
  expect_error({{"model_type", 3}}, {"model_type", "got 3"});
  expect_error(with(small("gla"), "hidden_size", -32), {"hidden_size", "whole number", "got -32"});
  expect_error(with(small("gla"), "hidden_size", "32"), {"hidden_size", "whole number", "got \"32\""});
  expect_error(with(small("gla"), "hidden_size", 32.5), {"hidden_size", "got 32.5"});
  expect_error(with(small("gla"), "vocab_size", true), {"vocab_size", "got true"});
  expect_error(with(small("gla"), "vocab_size", 1ull << 63), {"vocab_size", "got 9223372036854775808"});
  expect_error(with(small("gla"), "num_hidden_layers", 0), {"num_hidden_layers", "got 0"});
  expect_error(with(small("gla"), "num_hidden_layers", 1 << 20), {"num_hidden_layers", "got 1048576"});
  expect_error(with(small("gla"), "intermediate_size", 0), {"intermediate_size", "got 0"});
  expect_error(with(small("gla"), "hidden_ratio", -1), {"hidden_ratio", "positive"});
  expect_error(with(small("gla"), "norm_eps", "tiny"), {"norm_eps", "number", "tiny"});
  expect_error(with(small("gla"), "norm_eps", -1), {"norm_eps", "negative"});
  expect_error(with(small("gla"), "initializer_range", -0.1), {"initializer_range", "-0.1"});
  expect_error(with(small("gla"), "tie_word_embeddings", 1), {"tie_word_embeddings", "true or false", "got 1"});
  EXPECT_THROW(parse_config(std::string_view("{\"model_type\": \"gla\"")), Error);
}

TEST(Config, Heads) {
  expect_error(with(small("transformer"), "num_heads", 5), {"num_heads", "divide", "hidden_size = 32", "got 5"});
  expect_error(with(small("transformer"), "num_heads", 32), {"num_heads", "even head dimension", "got 32"});
  expect_error(with(small("transformer"), "num_kv_heads", 3), {"num_kv_heads", "divide", "num_heads = 2", "got 3"});
  expect_error(with(small("gla"), "num_heads", 3), {"num_heads", "divide", "= 16", "got 3"});
  expect_error(with(small("gla"), "num_heads", nullptr), {"num_heads", "whole number", "null"});
  expect_error(with(small("gla"), "num_kv_heads", 3), {"num_kv_heads", "divide", "got 3"});
  expect_error(with(small("retnet"), "expand_k", 0.1), {"expand_k", "whole number", "0.1"});
  expect_error(with(small("retnet"), "num_heads", 32), {"num_heads", "even key dimension"});
  expect_error(with(small("delta_net"), "num_heads", 7), {"num_heads", "divide", "got 7"});
  expect_error(with(small("gated_deltanet"), "num_v_heads", 3), {"num_heads", "num_v_heads = 3", "got 2"});
  expect_error(with(small("gated_deltanet"), "expand_v", 0.3), {"expand_v", "head_dim = 16", "0.3"});
  expect_error(with(small("hgrn2"), "expand_ratio", 5), {"expand_ratio", "divide", "hidden_size = 32", "got 5"});
  expect_error(with(small("hgrn2"), "num_heads", 3), {"num_heads times expand_ratio", "got 3 times 8"});
  expect_error(with(small("hgrn"), "expand_ratio", 2), {"expand_ratio", "use_lower_bound", "got 2"});
  expect_error(with(small("gla"), "clamp_min", 1), {"clamp_min", "positive"});
  expect_error(with(small("gla"), "conv_size", 0), {"conv_size", "got 0"});
}

TEST(Config, FullAttention) {
  const auto attn = [](const std::string& key, json value) { return with(small("gla"), "attn", with(kAttn, key, std::move(value))); };
  expect_error(attn("layers", {3}), {"attn.layers", "from 0 to 2", "got 3"});
  expect_error(attn("layers", {-1}), {"attn.layers", "got -1"});
  expect_error(attn("layers", {1.5}), {"attn.layers", "got 1.5"});
  expect_error(attn("layers", {1, 1}), {"attn.layers", "once", "1 twice"});
  expect_error(attn("layers", 1), {"attn.layers", "list", "got 1"});
  expect_error(attn("num_heads", 5), {"attn.num_heads", "divide", "got 5"});
  expect_error(attn("num_kv_heads", 3), {"attn.num_kv_heads", "divide", "got 3"});
  expect_error(attn("window_size", -4), {"attn.window_size", "got -4"});
  expect_error(attn("rope_theta", 0), {"attn.rope_theta", "positive"});
  expect_error(attn("qkv_bias", "no"), {"attn.qkv_bias", "true or false"});
  expect_error(attn("rope_scaling", 2), {"attn.rope_scaling", "not supported"});
  expect_error(with(small("gla"), "attn", 3), {"attn", "object", "got 3"});
  expect_error(with(small("gla"), "attn", json{{"layers", {1}}}), {"attn.num_heads", "given"});
  expect_error(with(small("gla"), "attn", {kAttn, kAttn}), {"attn[1].layers", "once"});
  EXPECT_EQ(parse_config(with(small("gla"), "attn", kAttn)).attention_of(2)->num_kv_heads, 2);
  EXPECT_EQ(parse_config(with(small("gla"), "attn", kAttn)).attention_of(1), nullptr);
}

TEST(Config, WhatWouldChangeTheMathematicsIsRefused) {
  expect_error(with(small("gla"), "hidden_act", "gelu"), {"hidden_act", "swish", "gelu"});
  expect_error(with(small("gla"), "elementwise_affine", false), {"elementwise_affine", "true", "false"});
  expect_error(with(small("gla"), "feature_map", "relu"), {"feature_map", "null", "relu"});
  expect_error(with(small("gla"), "use_gk", false), {"use_gk"});
  expect_error(with(small("gla"), "attnres_block_size", 4), {"attnres_block_size", "got 4"});
  expect_error(with(small("delta_net"), "qk_norm", "sum"), {"qk_norm", "l2", "sum"});
  expect_error(with(small("delta_net"), "qk_activation", "elu"), {"qk_activation", "elu"});
  expect_error(with(small("delta_net"), "use_output_norm", false), {"use_output_norm"});
  expect_error(with(small("transformer"), "attn", kAttn), {"attn", "transformer"});
}

TEST(Presets, NamesAndErrors) {
  EXPECT_EQ(preset("340M-gdn-3-1").num_attention_layers(), 8);
  EXPECT_EQ(preset("340M-gdn-24-1").attn.at(0).layers, std::vector<int64_t>{23});
  EXPECT_EQ(preset("tiny-gla-3-1").attn.at(0).layers, (std::vector<int64_t>{2, 5}));
  EXPECT_EQ(preset("tiny-gla-pure"), preset("tiny-gla"));
  EXPECT_EQ(preset("tiny-gla").vocab_size, 256);
  for (const std::string name : {"", "gla", "tiny", "tiny-gla-", "tiny-mamba", "7B-gla", "tiny-gla-3", "tiny-gla-3-2", "tiny-gla-0-1", "tiny-gla-x-1",
                                 "tiny-gla-7-1", "tiny-gla--3-1", "tiny-gla-3-1-1", "tiny-transformer-3-1"}) {
    try {
      preset(name);
      ADD_FAILURE() << "'" << name << "' was accepted";
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("SIZE-FAMILY[-RATIO]"), std::string::npos) << error.what();
      EXPECT_NE(std::string(error.what()).find("'" + name + "'"), std::string::npos) << error.what();
    }
  }
}

}  // namespace
}  // namespace braid
