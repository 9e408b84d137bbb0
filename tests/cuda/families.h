// A small model of each family, with heads of sizes that kernels are built for.
#pragma once
#include <array>
#include <string>

#include "models/presets.h"

namespace braid::testing {

inline constexpr int64_t kFamilyVocab = 97;
inline const std::array<std::string, 7> kFamilyNames = {"transformer", "hgrn", "retnet", "gla", "hgrn2", "deltanet", "gdn"};

/// Three layers, the second of full attention in hybrids.
inline ModelConfig config_of(const std::string& family, bool hybrid) {
  ModelConfig config = preset("tiny-" + family);
  config.hidden_size = 128;
  config.num_hidden_layers = 3;
  config.vocab_size = kFamilyVocab;
  config.intermediate_size = 256;
  if (family == "transformer") {
    config.attn = {{.layers = {0, 1, 2}, .num_heads = 2, .num_kv_heads = 2}};
  } else if (hybrid) {
    config.attn = {{.layers = {1}, .num_heads = 2, .num_kv_heads = 1}};
  }
  config.num_heads = config.num_kv_heads = config.num_v_heads = 0;  // 0: by the other sizes
  if (family == "hgrn2") config.expand_ratio = 64;
  else if (family != "hgrn" && family != "transformer") config.num_heads = 2;
  if (family == "gdn") config.head_dim = 64;
  return config;
}

}  // namespace braid::testing
