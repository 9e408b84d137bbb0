// Where the inputs and outputs of a walk lie in shared memory.
#pragma once
#include "cuda/kernels/gated_linear_attention/cut.h"

namespace braid::gla_cuda {

/// Chunks whose inputs lie in shared memory at once: two where the multiprocessor's blocks leave room for them.
constexpr int walk_stages(int64_t C, int compute_capability) { return compute_capability >= 90 && (C == 64 || C == 256) ? 2 : 1; }

#if defined(__CUDA_ARCH__)
template <int C>
inline constexpr int kDeviceStages = walk_stages(C, __CUDA_ARCH__ / 10);
#else
template <int C>
inline constexpr int kDeviceStages = 1;  // no walk runs on the host
#endif

/// What the block keeps in shared memory, in bytes: of each stage from its start, the rest from the block's. The rows are `tile` wide.
struct WalkShared {
  int across, columns, rows, pairs, decay, factors, stage, out, partial, size;

  constexpr WalkShared(Walk mode, int C, int tile, int stages) : across(0), columns(mode == Walk::local ? 0 : C * 128) {
    rows = columns + C * 128;
    pairs = rows + tile * 128;
    decay = pairs + (adds_pairs(mode) ? 8192 : 0);
    factors = decay + (mode == Walk::keys ? tile : C) * 4;
    stage = (factors + 512 + 1023) / 1024 * 1024;
    out = stages * stage;
    partial = out + (mode == Walk::local ? 0 : tile * 128);
    size = partial + (mode != Walk::local && C > 256 ? tile / 16 * 4096 : 0);
  }
};

}  // namespace braid::gla_cuda
