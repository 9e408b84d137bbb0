// Both directions give a block one row at a time.
#pragma once
#include "cuda/runtime/check.h"

namespace braid::cuda {

/// Blocks for N rows of D elements, `width` of them a thread; each takes every so many rows.
inline LaunchConfig rows_config(int64_t N, int64_t D, int width) {
  const int64_t threads = (D / width + 31) / 32 * 32;
  return {.grid = static_cast<unsigned>(N < 65536 ? N : 65536), .block = static_cast<unsigned>(threads < 32 ? 32 : threads > 256 ? 256 : threads)};
}

}  // namespace braid::cuda
