// How a recurrence is computed.
#pragma once
#include <cstdint>

#include "core/sequences.h"

namespace braid {

/// token: one token after the other, the definition. chunked: matrix products over chunks of tokens, the same function. automatic:
/// chunked when the longest sequence has more than 16 tokens, else token.
enum class Form : uint8_t { automatic, token, chunked };

constexpr Form chosen_form(Form form, int64_t max_length) {
  if (form != Form::automatic) return form;
  return max_length > 16 ? Form::chunked : Form::token;
}

/// Where the final state goes: new memory, or over the initial state where the attributes of the recurrence ask for that.
template <class Attrs>
Tensor final_state_for(Context& ctx, const Attrs& attrs, const Tensor& initial_state, const Shape& shape, DType dtype) {
  if (!attrs.in_place) return Tensor::empty(ctx, shape, dtype);
  BRAID_CHECK(initial_state && !ctx.on_cpu() && !ctx.tape && attrs.seqs.max_length() <= 1,
              "in_place: an initial state, a GPU, no gradient and at most one token a sequence are needed");
  return initial_state;
}

}  // namespace braid
