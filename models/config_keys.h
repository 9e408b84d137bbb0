// The keys of config.json, listed once for reading and writing. Only models/config.cpp uses it.
#pragma once
#include "models/config.h"

namespace braid::detail {

/// Visits the keys that concern the whole model. A visitor has size(key, value), size_or_null, whole_or_null, number, number_or_null
/// and flag; `or_null` means that null is legal: it stands for 0 or for an absent optional.
template <class Config, class Visitor>
void visit_model_keys(Config& c, Visitor&& visit) {
  visit.size("hidden_size", c.hidden_size);
  visit.size("num_hidden_layers", c.num_hidden_layers);
  visit.size("vocab_size", c.vocab_size);
  visit.size("max_position_embeddings", c.max_position_embeddings);
  visit.number_or_null("hidden_ratio", c.hidden_ratio);
  visit.whole_or_null("intermediate_size", c.intermediate_size);
  visit.number("norm_eps", c.norm_eps);
  visit.number("initializer_range", c.initializer_range);
  visit.flag("tie_word_embeddings", c.tie_word_embeddings);
  visit.whole_or_null("bos_token_id", c.bos_token_id);
  visit.whole_or_null("eos_token_id", c.eos_token_id);
  visit.whole_or_null("pad_token_id", c.pad_token_id);
}

/// Visits the keys of full attention: of a transformer's configuration or of an entry of `attn`.
template <class Config, class Visitor>
void visit_attention_keys(Config& c, Visitor&& visit) {
  visit.size("num_heads", c.num_heads);
  visit.size_or_null("num_kv_heads", c.num_kv_heads);
  visit.flag("qkv_bias", c.qkv_bias);
  visit.flag("qk_norm", c.qk_norm);
  visit.number("rope_theta", c.rope_theta);
  visit.size_or_null("window_size", c.window_size);
}

template <class Config, class Visitor>
void visit_linear_attention_keys(Config& c, Visitor&& visit) {
  visit.size("num_heads", c.num_heads);
  visit.size_or_null("num_kv_heads", c.num_kv_heads);
  visit.number("expand_k", c.expand_k);
  visit.number("expand_v", c.expand_v);
  visit.flag("use_output_gate", c.use_output_gate);
  visit.flag("fuse_norm", c.fuse_norm);
}

/// Visits the keys of the family's token mixer.
template <class Config, class Visitor>
void visit_mixer_keys(Config& c, Visitor&& visit) {
  if (c.family == Family::transformer) return;
  visit.flag("use_short_conv", c.use_short_conv);
  visit.size("conv_size", c.conv_size);
  switch (c.family) {
    case Family::transformer:
      break;
    case Family::hgrn:
      visit.number("expand_ratio", c.expand_ratio);
      visit.flag("use_lower_bound", c.use_lower_bound);
      break;
    case Family::hgrn2:
      visit.size_or_null("num_heads", c.num_heads);
      visit.number_or_null("expand_ratio", c.expand_ratio);
      visit.flag("use_lower_bound", c.use_lower_bound);
      break;
    case Family::retnet:
      visit_linear_attention_keys(c, visit);
      break;
    case Family::gla:
      visit_linear_attention_keys(c, visit);
      visit.number_or_null("clamp_min", c.clamp_min);
      visit.number("gate_logit_normalizer", c.gate_logit_normalizer);
      visit.size("gate_low_rank_dim", c.gate_low_rank_dim);
      break;
    case Family::delta_net:
      visit.size("num_heads", c.num_heads);
      visit.number("expand_k", c.expand_k);
      visit.number("expand_v", c.expand_v);
      visit.flag("use_gate", c.use_gate);
      visit.flag("use_beta", c.use_beta);
      visit.flag("allow_neg_eigval", c.allow_neg_eigval);
      visit.text("qk_activation", c.qk_activation);
      break;
    case Family::gated_deltanet:
      visit.size("num_heads", c.num_heads);
      visit.size_or_null("num_v_heads", c.num_v_heads);
      visit.size("head_dim", c.head_dim);
      visit.number("expand_v", c.expand_v);
      visit.flag("use_gate", c.use_gate);
      visit.flag("allow_neg_eigval", c.allow_neg_eigval);
      break;
  }
}

}  // namespace braid::detail
