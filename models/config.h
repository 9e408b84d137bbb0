// What a model is: the typed form of config.json, with keys and meanings as in flash-linear-attention.
#pragma once
#include <array>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace braid {

/// The token mixer of every layer that is not full attention.
enum class Family : uint8_t { transformer, hgrn, retnet, gla, hgrn2, delta_net, gated_deltanet };
inline constexpr std::array kFamilies = {Family::transformer, Family::hgrn,      Family::retnet,        Family::gla,
                                         Family::hgrn2,       Family::delta_net, Family::gated_deltanet};

/// `model_type` in config.json.
std::string_view to_string(Family family);

/// Full attention of the layers listed (0-based). One entry of `attn`; the whole model of a transformer.
struct AttentionConfig {
  std::vector<int64_t> layers;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;  // divides num_heads
  bool qkv_bias = false;
  bool qk_norm = false;
  double rope_theta = 10000;
  int64_t window_size = 0;  // 0: none; else the last w tokens, the current one included
  friend bool operator==(const AttentionConfig&, const AttentionConfig&) = default;
};

/// All that fixes a model's mathematics and parameters. Members carry the names of config.json's keys; those that a family does not
/// have keep their defaults and mean nothing there.
struct ModelConfig {
  Family family = Family::transformer;
  int64_t hidden_size = 2048;
  int64_t num_hidden_layers = 24;
  int64_t vocab_size = 32000;
  int64_t max_position_embeddings = 2048;  // kept for others; no computation here depends on it
  double hidden_ratio = 4;
  std::optional<int64_t> intermediate_size;  // else from hidden_ratio: see mlp_width
  double norm_eps = 1e-6;
  double initializer_range = 0.02;
  bool tie_word_embeddings = false;
  std::optional<int64_t> bos_token_id = 1, eos_token_id = 2, pad_token_id;

  int64_t num_heads = 0;     // of the mixer; for a transformer see attn
  int64_t num_kv_heads = 0;  // gla, retnet: heads of k and v; divides num_heads
  int64_t num_v_heads = 0;   // gated_deltanet: a multiple of num_heads
  int64_t head_dim = 256;    // gated_deltanet: width of a key head
  double expand_k = 1, expand_v = 1;
  double expand_ratio = 1;  // hgrn: width of the state over hidden_size; hgrn2: key dimension of a head
  bool use_short_conv = false;
  int64_t conv_size = 4;
  bool use_output_gate = true;  // gla, retnet
  bool use_gate = false;        // delta_net, gated_deltanet
  bool use_beta = true;         // delta_net
  bool allow_neg_eigval = false;
  bool use_lower_bound = true;  // hgrn, hgrn2
  bool fuse_norm = true;        // gla, retnet: only decides the name of the output norm's weight
  std::optional<double> clamp_min;
  double gate_logit_normalizer = 16;
  int64_t gate_low_rank_dim = 16;
  std::string qk_activation = "silu";  // delta_net: silu or identity

  std::vector<AttentionConfig> attn;  // of a transformer: one, with every layer

  /// Of layer `layer_idx`: its full attention, or null when it has the family's mixer.
  const AttentionConfig* attention_of(int64_t layer_idx) const;
  int64_t num_attention_layers() const;
  /// intermediate_size, or 256 · ceil(int(hidden_size · hidden_ratio · 2/3) / 256).
  int64_t mlp_width() const;
  /// Widths of all heads of the mixer together: of q, of the state's value side.
  int64_t key_dim() const;
  int64_t value_dim() const;

  friend bool operator==(const ModelConfig&, const ModelConfig&) = default;
};

/// Reads a configuration. Absent keys have fla's defaults. Unknown keys are ignored, as in fla, whose files have many that only concern
/// another implementation (ignored_keys lists them), except those that look like a misspelling of a known key: at most two letters
/// inserted, left out or replaced. Throws Error with one line that names the key, what was expected and what was given: a misspelt key,
/// an unknown model_type, a wrong type, a size below 1, heads that do not divide, an attention layer out of range or named twice,
/// a setting that would change the mathematics and is not supported.
ModelConfig parse_config(const nlohmann::json& json);
/// The same from text; text that is not JSON is an Error too.
ModelConfig parse_config(std::string_view text);
/// Keys of `json`, an object, that no family has: parse_config does not look at them.
std::vector<std::string> ignored_keys(const nlohmann::json& json);
/// What parse_config reads, with every key of the family written out: parse_config(to_json(c)) == c.
nlohmann::json to_json(const ModelConfig& config);
/// The configuration with head counts that are 0 filled in (num_kv_heads, num_v_heads: as num_heads; hgrn2: num_heads from expand_ratio or
/// the other way round). Throws Error as parse_config does. For configurations made in code; HybridLm calls it.
ModelConfig completed(ModelConfig config);

/// The layers R−1, 2R−1, … of `num_layers`: one layer of full attention in every R.
std::vector<int64_t> every_rth_layer(int64_t num_layers, int64_t r);

}  // namespace braid
