// Descriptors for Hopper's copies into shared memory (device/tma.h).
#pragma once
#include <cuda.h>

#include <cstdint>

namespace braid::cuda {

/// Boxes of 64 columns of one head and `box_rows` (at most 256) tokens of the bf16 tensor [tokens, heads, dim], written with the 128-byte swizzle.
/// tokens, heads > 0; dim a multiple of 64; the address a multiple of 16. A kernel takes it inside its (__grid_constant__) Params.
CUtensorMap head_tensor_map(const void* address, int64_t tokens, int64_t heads, int64_t dim, int box_rows);
/// Boxes of `box` (even, at most 256) neighbours of a row of the 8-byte elements [rows, columns], rows `stride` (even) elements apart. Copies
/// must begin at even columns: at others the hardware refuses the instruction.
CUtensorMap row_tensor_map(const void* address, int64_t rows, int64_t columns, int64_t stride, int box);

}  // namespace braid::cuda
