// A recurrence as a mixer runs it.
#pragma once
#include "autograd/apply.h"
#include "models/layers/mixer.h"

namespace braid {

/// Its output `o`. It goes on from the state of `in` and leaves its final state there (in the same memory while a graph decodes, which finds it
/// there at the next token); without one every sequence starts anew (`inputs.initial_state` stays undefined).
template <class Recurrence>
Tensor recur(Context& ctx, const MixerInput& in, typename Recurrence::Inputs inputs, typename Recurrence::Attrs attrs) {
  if (in.state) inputs.initial_state = in.state->recurrent;
  attrs.in_place = in.device_positions.defined();
  const auto out = apply<Recurrence>(ctx, inputs, attrs);
  if (in.state) in.state->recurrent = out.final_state;
  return out.o;
}

}  // namespace braid
