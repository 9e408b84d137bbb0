#include "models/presets.h"

#include <algorithm>
#include <array>
#include <charconv>

#include "core/error.h"

namespace braid {
namespace {

struct Size {
  std::string_view name;
  int64_t hidden, num_layers, vocab, context;
  int64_t attention_heads;                       // of full attention, in transformers and hybrids
  int64_t retnet_heads, gla_heads, delta_heads;  // delta heads: of 128 channels in the published sizes
  int64_t gdn_heads, gdn_head_dim, hgrn2_expand;
};

constexpr std::array kSizes = {
    Size{"tiny", 64, 6, 256, 512, 4, 4, 4, 4, 4, 16, 16},
    Size{"340M", 1024, 24, 32000, 4096, 16, 4, 4, 8, 4, 256, 128},
    Size{"1.3B", 2048, 24, 32000, 4096, 32, 8, 4, 16, 8, 256, 128},
};

struct FamilyName {
  std::string_view name;
  Family family;
};
constexpr std::array kNames = {
    FamilyName{"transformer", Family::transformer},
    FamilyName{"hgrn", Family::hgrn},
    FamilyName{"retnet", Family::retnet},
    FamilyName{"gla", Family::gla},
    FamilyName{"hgrn2", Family::hgrn2},
    FamilyName{"deltanet", Family::delta_net},
    FamilyName{"gdn", Family::gated_deltanet},
};

[[noreturn]] void fail_name(std::string_view name, const std::string& why) {
  fail("preset: there is no '", name, "'", why,
       "; names are SIZE-FAMILY[-RATIO] with SIZE tiny, 340M or 1.3B, FAMILY transformer, hgrn, retnet, gla, hgrn2, deltanet or gdn, and RATIO pure "
       "or "
       "R-1 (one layer of full attention in every R), as in tiny-gdn-3-1");
}

/// The first part of `text` up to a '-', which is removed.
std::string_view next_part(std::string_view& text) {
  const size_t dash = text.find('-');
  const std::string_view part = text.substr(0, dash);
  text = dash == std::string_view::npos ? std::string_view{} : text.substr(dash + 1);
  return part;
}

void set_mixer(ModelConfig& c, const Size& size) {
  switch (c.family) {
    case Family::transformer:
      break;
    case Family::hgrn:
      c.expand_ratio = 1;
      break;
    case Family::retnet:
      c.num_heads = size.retnet_heads, c.expand_v = 2, c.hidden_ratio = 2;
      break;
    case Family::gla:
      c.num_heads = size.gla_heads, c.expand_k = 0.5;
      break;
    case Family::hgrn2:
      c.expand_ratio = static_cast<double>(size.hgrn2_expand);
      break;
    case Family::delta_net:
      c.num_heads = size.delta_heads, c.use_short_conv = true;
      break;
    case Family::gated_deltanet:
      c.num_heads = size.gdn_heads, c.head_dim = size.gdn_head_dim, c.use_short_conv = true, c.use_gate = true;
      break;
  }
}

/// Rounding to multiples of 256 would make a third of a tiny model's MLP padding: 3 times the width, or for retnet 1.5.
void set_mlp(ModelConfig& c, const Size& size) {
  if (size.name == "tiny") c.intermediate_size = c.family == Family::retnet ? size.hidden * 3 / 2 : size.hidden * 3;
}

void set_attention(ModelConfig& c, const Size& size, int64_t every) {
  AttentionConfig attention{.layers = every_rth_layer(size.num_layers, every), .num_heads = size.attention_heads};
  attention.num_kv_heads = attention.num_heads;
  c.attn = {attention};
}

/// R of "R-1"; 0 for none or "pure".
int64_t parse_ratio(std::string_view name, std::string_view text, int64_t num_layers) {
  if (text.empty() || text == "pure") return 0;
  int64_t every = 0;
  const std::string_view number = text.substr(0, text.find('-'));
  const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), every);
  if (error != std::errc{} || end != number.data() + number.size() || text.substr(number.size()) != "-1" || every < 1) fail_name(name, "");
  if (every > num_layers) fail_name(name, ": R must be at most its " + std::to_string(num_layers) + " layers");
  return every;
}

}  // namespace

std::optional<Family> preset_family(std::string_view name) {
  for (const FamilyName& known : kNames)
    if (known.name == name) return known.family;
  return {};
}

ModelConfig preset(std::string_view name) {
  std::string_view rest = name;
  const std::string_view size_name = next_part(rest), family_name = next_part(rest);
  const auto size = std::find_if(kSizes.begin(), kSizes.end(), [&](const Size& s) { return s.name == size_name; });
  const std::optional<Family> family = preset_family(family_name);
  if (size == kSizes.end() || !family || name.ends_with('-')) fail_name(name, "");
  ModelConfig config;
  config.family = *family;
  config.hidden_size = size->hidden;
  config.num_hidden_layers = size->num_layers;
  config.vocab_size = size->vocab;
  config.max_position_embeddings = size->context;
  set_mixer(config, *size);
  set_mlp(config, *size);
  const int64_t every = parse_ratio(name, rest, size->num_layers);
  if (config.family == Family::transformer) {
    if (!rest.empty()) fail_name(name, ": a transformer has full attention in every layer and takes no ratio");
    set_attention(config, *size, 1);
  } else if (every > 0) {
    set_attention(config, *size, every);
  }
  return completed(std::move(config));
}

std::vector<std::string> preset_names() {
  std::vector<std::string> names;
  for (const Size& size : kSizes) {
    for (const FamilyName& family : kNames) {
      const std::string pure = std::string(size.name) + "-" + std::string(family.name);
      names.push_back(pure);
      if (family.family == Family::transformer) continue;
      for (int64_t every : {24, 12, 6, 3})
        if (every <= size.num_layers) names.push_back(pure + "-" + std::to_string(every) + "-1");
    }
  }
  return names;
}

}  // namespace braid
