// States of sequences without tokens, which no kernel that walks tokens meets.
#pragma once
#include "core/context.h"
#include "core/sequences.h"

namespace braid::cuda {

/// to[s] = from[s] (zero where `from` is undefined) for every sequence s without tokens. Both are f32 [S, ...]. Nothing is launched
/// when every sequence has tokens or `to` is undefined.
void pass_empty_sequences(Context& ctx, const Sequences& seqs, const Tensor& from, const Tensor& to);

}  // namespace braid::cuda
