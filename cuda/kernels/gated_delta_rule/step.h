// Decoding: one token a sequence.
#pragma once
#include "ops/recurrence/gated_delta_rule.h"

namespace braid::delta_cuda {

/// True when every sequence has one token, nothing is recorded for backward and K is at most 256.
bool takes_step(Context& ctx, const GatedDeltaRule::Inputs& in, const GatedDeltaRule::Attrs& attrs);
void step(Context& ctx, const GatedDeltaRule::Inputs& in, const GatedDeltaRule::Attrs& attrs, const GatedDeltaRule::Outputs& out);

}  // namespace braid::delta_cuda
