#include <cmath>

#include "core/error.h"
#include "models/config.h"

namespace braid {
namespace {

constexpr std::string_view kFile = "config.json";
constexpr int64_t kMaxSize = int64_t{1} << 30;

void check_size(std::string_view key, int64_t value) {
  BRAID_CHECK(value >= 1 && value <= kMaxSize, kFile, ": ", key, " must be from 1 to ", kMaxSize, ", got ", value);
}

/// `expand` times `width` must be a whole number of at least one; returns it.
int64_t checked_width(std::string_view key, double expand, std::string_view of, int64_t width) {
  const double product = expand * static_cast<double>(width), whole = std::floor(product);
  BRAID_CHECK(product >= 1 && product <= static_cast<double>(kMaxSize) && product - whole < 1e-5 * product, kFile, ": ", key, " times ", of, " = ",
              width, " must be a whole number from 1 to ", kMaxSize, ", got ", key, " = ", expand);
  return static_cast<int64_t>(whole);
}

void check_divides(const std::string& key, int64_t divisor, std::string_view what, int64_t value) {
  BRAID_CHECK(value % divisor == 0, kFile, ": ", key, " must divide ", what, " = ", value, ", got ", divisor);
}

void check_attention(const ModelConfig& c, const AttentionConfig& attention, const std::string& prefix, std::vector<bool>& taken) {
  check_size(prefix + "num_heads", attention.num_heads);
  check_size(prefix + "num_kv_heads", attention.num_kv_heads);
  check_divides(prefix + "num_heads", attention.num_heads, "hidden_size", c.hidden_size);
  check_divides(prefix + "num_kv_heads", attention.num_kv_heads, "num_heads", attention.num_heads);
  const int64_t head_dim = c.hidden_size / attention.num_heads;
  BRAID_CHECK(head_dim % 2 == 0, kFile, ": ", prefix, "num_heads must leave an even head dimension for rotary positions, got ", attention.num_heads,
              " of hidden_size = ", c.hidden_size);
  BRAID_CHECK(attention.rope_theta > 0 && std::isfinite(attention.rope_theta), kFile, ": ", prefix, "rope_theta must be positive, got ",
              attention.rope_theta);
  BRAID_CHECK(attention.window_size >= 0, kFile, ": ", prefix, "window_size must not be negative, got ", attention.window_size);
  for (int64_t layer : attention.layers) {
    BRAID_CHECK(layer >= 0 && layer < c.num_hidden_layers, kFile, ": ", prefix, "layers must hold indices from 0 to ", c.num_hidden_layers - 1,
                ", got ", layer);
    BRAID_CHECK(!taken[layer], kFile, ": ", prefix, "layers must name a layer once, got ", layer, " twice");
    taken[layer] = true;
  }
}

void check_hgrn(const ModelConfig& c) {
  const int64_t width = checked_width("expand_ratio", c.expand_ratio, "hidden_size", c.hidden_size);
  BRAID_CHECK(!c.use_lower_bound || width == c.hidden_size, kFile, ": expand_ratio must be 1 with use_lower_bound, got ", c.expand_ratio);
}

void check_hgrn2(const ModelConfig& c) {
  BRAID_CHECK(c.expand_ratio >= 1 && c.expand_ratio == std::floor(c.expand_ratio), kFile, ": expand_ratio must be a whole number of at least 1, got ",
              c.expand_ratio);
  check_divides("expand_ratio", static_cast<int64_t>(c.expand_ratio), "hidden_size", c.hidden_size);
  BRAID_CHECK(c.num_heads * static_cast<int64_t>(c.expand_ratio) == c.hidden_size, kFile,
              ": num_heads times expand_ratio must be hidden_size = ", c.hidden_size, ", got ", c.num_heads, " times ", c.expand_ratio);
}

void check_heads(const ModelConfig& c) {
  const int64_t key_dim = checked_width("expand_k", c.expand_k, "hidden_size", c.hidden_size);
  const int64_t value_dim = checked_width("expand_v", c.expand_v, "hidden_size", c.hidden_size);
  check_divides("num_heads", c.num_heads, "expand_k · hidden_size", key_dim);
  check_divides("num_heads", c.num_heads, "expand_v · hidden_size", value_dim);
  if (c.family == Family::delta_net) {
    BRAID_CHECK(c.qk_activation == "silu" || c.qk_activation == "identity", kFile,
                ": qk_activation must be \"silu\" or \"identity\" (relu and elu are ", "not supported), got \"", c.qk_activation, "\"");
    return;
  }
  check_size("num_kv_heads", c.num_kv_heads);
  check_divides("num_kv_heads", c.num_kv_heads, "num_heads", c.num_heads);
  BRAID_CHECK(c.family != Family::retnet || key_dim / c.num_heads % 2 == 0, kFile,
              ": num_heads must leave an even key dimension for rotary positions, got ", c.num_heads, " of ", key_dim);
  BRAID_CHECK(!c.clamp_min || *c.clamp_min <= 0, kFile, ": clamp_min must not be positive, got ", c.clamp_min.value_or(0));
  BRAID_CHECK(c.gate_logit_normalizer > 0, kFile, ": gate_logit_normalizer must be positive, got ", c.gate_logit_normalizer);
  check_size("gate_low_rank_dim", c.gate_low_rank_dim);
}

void check_gated_deltanet(const ModelConfig& c) {
  check_size("head_dim", c.head_dim);
  check_size("num_v_heads", c.num_v_heads);
  check_divides("num_heads", c.num_heads, "num_v_heads", c.num_v_heads);
  const int64_t head_v_dim = checked_width("expand_v", c.expand_v, "head_dim", c.head_dim);
  BRAID_CHECK(c.head_dim * c.num_heads <= kMaxSize && head_v_dim * c.num_v_heads <= kMaxSize, kFile, ": head_dim times heads must be at most ",
              kMaxSize, ", got ", c.head_dim, " times ", c.num_v_heads);
}

void check_mixer(const ModelConfig& c) {
  if (c.family == Family::transformer) return;
  check_size("conv_size", c.conv_size);
  BRAID_CHECK(!c.use_short_conv || c.conv_size >= 2, kFile, ": conv_size must be at least 2, got ", c.conv_size);
  if (c.family == Family::hgrn) return check_hgrn(c);
  check_size("num_heads", c.num_heads);
  if (c.family == Family::hgrn2) return check_hgrn2(c);
  if (c.family == Family::gated_deltanet) return check_gated_deltanet(c);
  check_heads(c);
}

}  // namespace

ModelConfig completed(ModelConfig c) {
  check_size("hidden_size", c.hidden_size);
  check_size("vocab_size", c.vocab_size);
  check_size("max_position_embeddings", c.max_position_embeddings);
  BRAID_CHECK(c.num_hidden_layers >= 1 && c.num_hidden_layers <= 1 << 16, kFile, ": num_hidden_layers must be from 1 to ", 1 << 16, ", got ",
              c.num_hidden_layers);
  BRAID_CHECK(c.hidden_ratio > 0 && c.hidden_ratio <= 1e6, kFile, ": hidden_ratio must be positive, at most 1e6, got ", c.hidden_ratio);
  check_size("intermediate_size", c.mlp_width());
  BRAID_CHECK(c.norm_eps >= 0 && std::isfinite(c.norm_eps), kFile, ": norm_eps must not be negative, got ", c.norm_eps);
  BRAID_CHECK(c.initializer_range >= 0 && std::isfinite(c.initializer_range), kFile, ": initializer_range must not be negative, got ",
              c.initializer_range);
  if (c.family == Family::hgrn2) {
    if (c.expand_ratio == 0 && c.num_heads > 0) c.expand_ratio = static_cast<double>(c.hidden_size) / static_cast<double>(c.num_heads);
    if (c.num_heads == 0 && c.expand_ratio >= 1) c.num_heads = static_cast<int64_t>(static_cast<double>(c.hidden_size) / c.expand_ratio);
  }
  if (c.num_kv_heads == 0) c.num_kv_heads = c.num_heads;
  if (c.num_v_heads == 0) c.num_v_heads = c.num_heads;
  check_mixer(c);
  const bool is_transformer = c.family == Family::transformer;
  std::vector<bool> taken(c.num_hidden_layers, false);
  for (size_t i = 0; i < c.attn.size(); ++i) {
    AttentionConfig& attention = c.attn[i];
    if (attention.num_kv_heads == 0) attention.num_kv_heads = attention.num_heads;
    check_attention(c, attention, is_transformer ? "" : c.attn.size() == 1 ? "attn." : "attn[" + std::to_string(i) + "].", taken);
  }
  BRAID_CHECK(!is_transformer || (c.attn.size() == 1 && c.num_attention_layers() == c.num_hidden_layers), kFile,
              ": a transformer must have full attention in all ", c.num_hidden_layers, " layers, got ", c.num_attention_layers());
  return c;
}

const AttentionConfig* ModelConfig::attention_of(int64_t layer_idx) const {
  for (const AttentionConfig& attention : attn)
    for (int64_t layer : attention.layers)
      if (layer == layer_idx) return &attention;
  return nullptr;
}

int64_t ModelConfig::num_attention_layers() const {
  int64_t count = 0;
  for (const AttentionConfig& attention : attn) count += static_cast<int64_t>(attention.layers.size());
  return count;
}

int64_t ModelConfig::mlp_width() const {
  if (intermediate_size) return *intermediate_size;
  const auto width = static_cast<int64_t>(static_cast<double>(hidden_size) * hidden_ratio * 2 / 3);
  return 256 * ((width + 255) / 256);
}

int64_t ModelConfig::key_dim() const {
  if (family == Family::hgrn || family == Family::hgrn2) return value_dim();
  return family == Family::gated_deltanet ? num_heads * head_dim : static_cast<int64_t>(static_cast<double>(hidden_size) * expand_k);
}

int64_t ModelConfig::value_dim() const {
  if (family == Family::hgrn) return static_cast<int64_t>(static_cast<double>(hidden_size) * expand_ratio);
  if (family == Family::hgrn2) return hidden_size;
  if (family == Family::gated_deltanet) return num_v_heads * static_cast<int64_t>(static_cast<double>(head_dim) * expand_v);
  return static_cast<int64_t>(static_cast<double>(hidden_size) * expand_v);
}

std::vector<int64_t> every_rth_layer(int64_t num_layers, int64_t r) {
  std::vector<int64_t> layers;
  for (int64_t layer = r - 1; layer < num_layers; layer += r) layers.push_back(layer);
  return layers;
}

}  // namespace braid
