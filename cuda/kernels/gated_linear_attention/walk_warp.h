// The products of a walk through mma.sync, one warp at a time. Device code.
#pragma once
#include "cuda/kernels/gated_linear_attention/walk.h"

namespace braid::gla_cuda::by_warp {

/// What lies between the arrival of copies and the barrier before the products that read them.
__device__ inline void publish_copies() {}

/// out += state · across
template <Walk mode, int C, int threads>
__device__ inline void contract(const Walker<mode, C, threads>& walker, const typename Walker<mode, C, threads>::Accumulators& state,
                                float (&out)[8][4]) {
  constexpr int steps = Walker<mode, C, threads>::kColumns / 16;
  const BlockAddress across(device::shared_address(walker.inputs + walker.shared.across), false);
#pragma unroll
  for (int k = 0; k < steps; ++k) {
    uint32_t a[4];
    walker.operand(state, k, a);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      uint32_t b[4];
      device::ldmatrix_x4(b, across.at(j, walker.part * steps + k));
      device::mma_bf16(out[2 * j], a, {b[0], b[1]});
      device::mma_bf16(out[2 * j + 1], a, {b[2], b[3]});
    }
  }
}

/// out += rows · pairsᵀ, in reverse out += rows · pairs
template <Walk mode, int C, int threads>
__device__ inline void add_pairs(const Walker<mode, C, threads>& walker, const uint32_t (&rows)[4][4], float (&out)[8][4]) {
  constexpr bool reverse = mode == Walk::values_reverse;
  const BlockAddress pairs(device::shared_address(walker.inputs + walker.shared.pairs), reverse);
#pragma unroll
  for (int k = 0; k < 4; ++k)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (reverse ? k < j : k > j) continue;  // all zeros
      uint32_t b[4];
      if (reverse) device::ldmatrix_x4_transposed(b, pairs.at(k, j));
      else device::ldmatrix_x4(b, pairs.at(j, k));
      device::mma_bf16(out[2 * j], rows[k], {b[0], b[1]});
      device::mma_bf16(out[2 * j + 1], rows[k], {b[2], b[3]});
    }
}

/// Completes and stages `out`; state = decay state + rows columnsᵀ.
template <Walk mode, int C, int threads>
__device__ inline void update(const Walker<mode, C, threads>& walker, typename Walker<mode, C, threads>::Accumulators& state, float (&out)[8][4]) {
  constexpr int blocks = Walker<mode, C, threads>::kColumns / 16;
  uint32_t rows[4][4];
  walker.load_rows(rows);
  walker.decay_out(out);
  if constexpr (adds_pairs(mode))
    if (walker.part == 0) add_pairs(walker, rows, out);
  if constexpr (mode != Walk::local) walker.stage_out(out);
  walker.decay(state);
  walker.decay_rows(rows);
  const BlockAddress columns(device::shared_address(walker.inputs + walker.shared.columns), true);
#pragma unroll
  for (int j = 0; j < blocks; ++j)
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      uint32_t b[4];
      device::ldmatrix_x4_transposed(b, columns.at(k, walker.part * blocks + j));
      device::mma_bf16(state[2 * j], rows[k], {b[0], b[1]});
      device::mma_bf16(state[2 * j + 1], rows[k], {b[2], b[3]});
    }
}

}  // namespace braid::gla_cuda::by_warp
