// How far a tensor is from its reference, as a whole and in its worst block.
#pragma once
#include <cstdint>
#include <string>

#include "core/tensor.h"

namespace braid::cli {

/// rms(error) / rms(reference) (rms(error) alone where the reference is all zero). NaN when an element of either is NaN. An error below
/// the smallest normal number of the given tensor's type is none: that type has no nearer number.
struct Comparison {
  double error = 0;
  double worst_block_error = 0;  // the same for one block; a block's reference counts as at least a tenth of the tensor's rms
  std::string worst_block;       // "tokens 64-127, head 3"
};

/// What the dimensions of a tensor mean, which decides its blocks.
enum class TensorKind : uint8_t {
  tokens,  // [N, H, …] or [N, D]: blocks of 64 tokens × head (64 columns where a row is one vector)
  states,  // [S, H, …] or [S, D]: blocks of a sequence × head
  whole    // weights and constants: one block
};

/// Of the tensor `name` (an input, output or "d_" gradient) with `shape`.
TensorKind kind_of(const std::string& name, const Shape& shape);

/// `given` and `reference` have the same shape; any floating dtypes. `columns_per_head`: 1 where dimension 1 counts heads, 64 where it
/// counts channels.
Comparison compare(Context& ctx, const Tensor& given, const Tensor& reference, TensorKind kind, int64_t columns_per_head);

}  // namespace braid::cli
