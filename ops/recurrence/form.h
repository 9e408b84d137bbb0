// How a recurrence is computed.
#pragma once
#include <cstdint>

namespace braid {

/// token: one token after the other, the definition. chunked: matrix products over chunks of tokens, the same function. automatic:
/// chunked when the longest sequence has more than 16 tokens, else token.
enum class Form : uint8_t { automatic, token, chunked };

constexpr Form chosen_form(Form form, int64_t max_length) {
  if (form != Form::automatic) return form;
  return max_length > 16 ? Form::chunked : Form::token;
}

}  // namespace braid
