#include "models/config.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "core/error.h"
#include "models/config_keys.h"

namespace braid {
namespace {

using nlohmann::json;

constexpr int64_t kMaxSize = int64_t{1} << 30;  // keeps products of two sizes inside 64 bits
constexpr std::string_view kFile = "config.json";

std::string shown(const json& value) {
  std::string text = value.dump(-1, ' ', true, json::error_handler_t::replace);
  return text.size() <= 60 ? text : text.substr(0, 57) + "...";
}

/// Reads values; keys that are absent leave the value as it is.
class Reader {
 public:
  Reader(const json& object, std::string prefix) : object_(object), prefix_(std::move(prefix)) {}

  const json* find(std::string_view key) const {
    const auto found = object_.find(key);
    return found == object_.end() ? nullptr : &*found;
  }
  void size(std::string_view key, int64_t& value) const {
    if (const json* given = find(key)) value = whole(key, *given, 1);
  }
  void size_or_null(std::string_view key, int64_t& value) const {
    if (const json* given = find(key)) value = given->is_null() ? 0 : whole(key, *given, 1);
  }
  void whole_or_null(std::string_view key, std::optional<int64_t>& value) const {
    const json* given = find(key);
    if (!given) return;
    value.reset();
    if (!given->is_null()) value = whole(key, *given, key == "intermediate_size" ? 1 : key == "pad_token_id" ? -1 : 0);
  }
  void number(std::string_view key, double& value) const {
    if (const json* given = find(key)) value = real(key, *given);
  }
  void number_or_null(std::string_view key, double& value) const {
    const json* given = find(key);
    if (!given) return;
    if (given->is_null()) value = key == "hidden_ratio" ? ModelConfig{}.hidden_ratio : 0;
    else value = real(key, *given);
  }
  void number_or_null(std::string_view key, std::optional<double>& value) const {
    const json* given = find(key);
    if (!given) return;
    value.reset();
    if (!given->is_null()) value = real(key, *given);
  }
  void flag(std::string_view key, bool& value) const {
    const json* given = find(key);
    if (!given) return;
    BRAID_CHECK(given->is_boolean(), kFile, ": ", prefix_, key, " must be true or false, got ", shown(*given));
    value = given->get<bool>();
  }
  void text(std::string_view key, std::string& value) const {
    const json* given = find(key);
    if (!given) return;
    BRAID_CHECK(given->is_string(), kFile, ": ", prefix_, key, " must be a string, got ", shown(*given));
    value = given->get<std::string>();
  }
  int64_t whole(std::string_view key, const json& given, int64_t low) const {
    const bool fits = given.is_number_integer() && !(given.is_number_unsigned() && given.get<uint64_t>() > static_cast<uint64_t>(kMaxSize));
    const int64_t value = fits ? given.get<int64_t>() : 0;
    BRAID_CHECK(fits && value >= low && value <= kMaxSize, kFile, ": ", prefix_, key, " must be a whole number from ", low, " to ", kMaxSize,
                ", got ", shown(given));
    return value;
  }
  const std::string& prefix() const { return prefix_; }

 private:
  double real(std::string_view key, const json& given) const {
    BRAID_CHECK(given.is_number() && std::isfinite(given.get<double>()), kFile, ": ", prefix_, key, " must be a finite number, got ", shown(given));
    return given.get<double>();
  }
  const json& object_;
  std::string prefix_;
};

class Writer {
 public:
  explicit Writer(json& object) : object_(object) {}
  void size(std::string_view key, int64_t value) { object_[key] = value; }
  void size_or_null(std::string_view key, int64_t value) { object_[key] = value ? json(value) : json(); }
  void whole_or_null(std::string_view key, const std::optional<int64_t>& value) { object_[key] = value ? json(*value) : json(); }
  void number(std::string_view key, double value) {
    // Whole values as integers: some readers divide by them and need it.
    if (value == std::floor(value) && std::abs(value) < 1e15) object_[key] = static_cast<int64_t>(value);
    else object_[key] = value;
  }
  void number_or_null(std::string_view key, double value) { number(key, value); }
  void number_or_null(std::string_view key, const std::optional<double>& value) {
    object_[key] = nullptr;
    if (value) number(key, *value);
  }
  void flag(std::string_view key, bool value) { object_[key] = value; }
  void text(std::string_view key, const std::string& value) { object_[key] = value; }

 private:
  json& object_;
};

/// Keys that would change the mathematics and have one value that Braid computes, for all families or some.
struct FixedKey {
  std::string_view key;
  std::vector<json> accepted;
  std::vector<Family> families;  // empty: all
};

const std::vector<FixedKey>& fixed_keys() {
  static const std::vector<FixedKey> keys = {
      {"hidden_act", {"swish", "silu"}, {}},
      {"gate_fn", {"swish", "silu"}, {}},
      {"elementwise_affine", {true}, {}},
      {"attnres_block_size", {nullptr}, {}},
      {"use_l2warp", {false}, {}},
      {"rope_scaling", {nullptr}, {}},
      {"quantization_config", {nullptr}, {}},
      {"conv_bias", {false}, {}},
      {"feature_map", {nullptr}, {Family::gla, Family::retnet}},
      {"use_gk", {true}, {Family::gla}},
      {"use_gv", {false}, {Family::gla}},
      {"qk_norm", {"l2"}, {Family::delta_net}},
      {"use_output_norm", {true}, {Family::delta_net}},
      {"attn", {nullptr}, {Family::transformer}},
  };
  return keys;
}

void check_fixed_keys(const Reader& read, Family family) {
  for (const FixedKey& fixed : fixed_keys()) {
    const json* given = read.find(fixed.key);
    if (!given || (!fixed.families.empty() && std::find(fixed.families.begin(), fixed.families.end(), family) == fixed.families.end())) continue;
    if (std::find(fixed.accepted.begin(), fixed.accepted.end(), *given) != fixed.accepted.end()) continue;
    std::string expected;
    for (const json& value : fixed.accepted) expected += (expected.empty() ? "" : " or ") + value.dump();
    fail(kFile, ": ", fixed.key, " must be ", expected, " (nothing else is supported for ", to_string(family), "), got ", shown(*given));
  }
}

Family parse_family(const json& object) {
  const auto given = object.find("model_type");
  std::string known;
  for (Family family : kFamilies) known += (known.empty() ? "" : ", ") + std::string(to_string(family));
  BRAID_CHECK(given != object.end(), kFile, ": model_type is missing, expected one of ", known);
  for (Family family : kFamilies)
    if (*given == std::string(to_string(family))) return family;
  fail(kFile, ": model_type must be one of ", known, ", got ", shown(*given));
}

/// fla's defaults where they differ between families.
ModelConfig defaults(Family family) {
  ModelConfig c;
  c.family = family;
  switch (family) {
    case Family::transformer:
    case Family::hgrn:
      break;
    case Family::hgrn2:
      c.expand_ratio = 128;
      break;
    case Family::retnet:
      c.num_heads = 8, c.expand_v = 2, c.hidden_ratio = 2;
      break;
    case Family::gla:
      c.num_heads = 4, c.expand_k = 0.5;
      break;
    case Family::delta_net:
      c.num_heads = 16, c.use_short_conv = true;
      break;
    case Family::gated_deltanet:
      c.num_heads = 6, c.expand_v = 2, c.use_gate = true, c.use_short_conv = true, c.num_hidden_layers = 21;
      break;
  }
  return c;
}

AttentionConfig parse_attention(const json& object, const std::string& prefix, int64_t num_layers) {
  BRAID_CHECK(object.is_object(), kFile, ": ", prefix, " must be an object, got ", shown(object));
  static const std::set<std::string> kKnown = {"layers", "num_heads", "num_kv_heads", "qkv_bias", "qk_norm", "rope_theta", "window_size"};
  for (const auto& [key, value] : object.items())
    BRAID_CHECK(kKnown.contains(key), kFile, ": ", prefix, ".", key,
                " is not supported; known are layers, num_heads, num_kv_heads, qkv_bias, qk_norm, ", "rope_theta, window_size");
  const Reader read(object, prefix + ".");
  const json* layers = read.find("layers");
  BRAID_CHECK(layers && layers->is_array(), kFile, ": ", prefix, ".layers must be a list of layer indices, got ",
              layers ? shown(*layers) : "nothing");
  BRAID_CHECK(read.find("num_heads"), kFile, ": ", prefix, ".num_heads must be given, got nothing");
  AttentionConfig attention;
  for (const json& layer : *layers) {
    BRAID_CHECK(layer.is_number_integer() && layer >= 0 && layer < num_layers, kFile, ": ", prefix, ".layers must hold indices from 0 to ",
                num_layers - 1, ", got ", shown(layer));
    attention.layers.push_back(layer.get<int64_t>());
  }
  detail::visit_attention_keys(attention, read);
  return attention;
}

void parse_all_attention(const Reader& read, ModelConfig& c) {
  if (c.family == Family::transformer) {
    AttentionConfig attention{.layers = every_rth_layer(c.num_hidden_layers, 1), .num_heads = 32};
    detail::visit_attention_keys(attention, read);
    c.attn = {attention};
    return;
  }
  const json* attn = read.find("attn");
  if (!attn || attn->is_null()) return;
  if (!attn->is_array()) {
    c.attn = {parse_attention(*attn, "attn", c.num_hidden_layers)};
    return;
  }
  for (size_t i = 0; i < attn->size(); ++i) c.attn.push_back(parse_attention((*attn)[i], "attn[" + std::to_string(i) + "]", c.num_hidden_layers));
}

json attention_to_json(const AttentionConfig& attention) {
  json object = {{"layers", attention.layers}};
  detail::visit_attention_keys(attention, Writer(object));
  return object;
}

std::string_view architecture(Family family) {
  constexpr std::string_view kNames[] = {"TransformerForCausalLM", "HGRNForCausalLM",     "RetNetForCausalLM",       "GLAForCausalLM",
                                         "HGRN2ForCausalLM",       "DeltaNetForCausalLM", "GatedDeltaNetForCausalLM"};
  return kNames[static_cast<int>(family)];
}

/// Every key that some family has: no family's key is a misspelling of another's.
const std::set<std::string, std::less<>>& known_keys() {
  static const std::set<std::string, std::less<>> keys = [] {
    std::set<std::string, std::less<>> all = {"torch_dtype"};
    for (const FixedKey& fixed : fixed_keys()) all.emplace(fixed.key);
    for (Family family : kFamilies) {
      ModelConfig config = defaults(family);
      if (family == Family::transformer) config.attn.resize(1);
      const json written = to_json(config);  // items() of a temporary would outlive it
      for (const auto& [key, value] : written.items()) all.insert(key);
    }
    return all;
  }();
  return keys;
}

/// Whether `given` becomes `key` by at most two letters inserted, left out or replaced (one in short keys).
bool is_near(std::string_view given, std::string_view key) {
  const size_t bound = key.size() < 6 ? 1 : 2;
  if (given.size() > key.size() + bound || key.size() > given.size() + bound) return false;
  std::vector<size_t> row(key.size() + 1);  // distances of the first i letters of `given` to every beginning of `key`
  for (size_t j = 0; j <= key.size(); ++j) row[j] = j;
  for (size_t i = 0; i < given.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i + 1;
    for (size_t j = 0; j < key.size(); ++j) {
      const size_t replaced = diagonal + (given[i] == key[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replaced, row[j] + 1, diagonal + 1});
    }
  }
  return row.back() <= bound;
}

/// Keys that other programs write into every configuration and that only look like misspellings.
constexpr std::array<std::string_view, 2> kOthersKeys = {"cls_token_id", "num_beams"};

void refuse_misspelt_keys(const json& object) {
  for (const std::string& given : ignored_keys(object)) {
    if (std::find(kOthersKeys.begin(), kOthersKeys.end(), given) != kOthersKeys.end()) continue;
    for (const std::string& key : known_keys())
      BRAID_CHECK(!is_near(given, key), kFile, ": the key ", shown(given), " is unknown, expected ", key, "; remove it if something else is meant");
  }
}

}  // namespace

std::string_view to_string(Family family) {
  constexpr std::string_view kNames[] = {"transformer", "hgrn", "retnet", "gla", "hgrn2", "delta_net", "gated_deltanet"};
  return kNames[static_cast<int>(family)];
}

ModelConfig parse_config(const json& object) {
  BRAID_CHECK(object.is_object(), kFile, ": must be an object, got ", shown(object));
  ModelConfig config = defaults(parse_family(object));
  const Reader read(object, "");
  refuse_misspelt_keys(object);
  check_fixed_keys(read, config.family);
  detail::visit_model_keys(config, read);
  detail::visit_mixer_keys(config, read);
  parse_all_attention(read, config);
  return completed(std::move(config));
}

std::vector<std::string> ignored_keys(const json& object) {
  std::vector<std::string> ignored;
  for (const auto& [key, value] : object.items())
    if (!known_keys().contains(key)) ignored.push_back(key);
  return ignored;
}

ModelConfig parse_config(std::string_view text) {
  json object;
  try {
    object = json::parse(text);
  } catch (const json::exception& error) {
    fail(kFile, ": must be JSON, got ", error.what());
  }
  return parse_config(object);
}

json to_json(const ModelConfig& config) {
  json object = {{"model_type", to_string(config.family)}, {"architectures", {architecture(config.family)}}, {"hidden_act", "swish"}};
  detail::visit_model_keys(config, Writer(object));
  detail::visit_mixer_keys(config, Writer(object));
  if (config.family == Family::transformer) {
    detail::visit_attention_keys(config.attn.at(0), Writer(object));
    return object;
  }
  if (config.family == Family::delta_net) object["qk_norm"] = "l2";
  object["attn"] = nullptr;
  if (config.attn.size() == 1) object["attn"] = attention_to_json(config.attn[0]);
  else
    for (const AttentionConfig& attention : config.attn) object["attn"].push_back(attention_to_json(attention));
  return object;
}

}  // namespace braid
