// The products of a walk through wgmma, four warps at a time, their right operands in shared memory. Device code for sm_90a.
#pragma once
#include "cuda/device/wgmma.h"
#include "cuda/kernels/gated_linear_attention/walk.h"

namespace braid::gla_cuda::by_warpgroup {

/// What lies between the arrival of copies and the barrier before the products that read them: wgmma reads through another path.
__device__ inline void publish_copies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

/// out += state · across. The state's operands are rounded while the products of those before them run.
template <Walk mode, int C, int threads>
__device__ inline void contract(const Walker<mode, C, threads>& walker, const typename Walker<mode, C, threads>::Accumulators& state,
                                float (&out)[8][4]) {
  constexpr int steps = Walker<mode, C, threads>::kColumns / 16;
  const uint32_t across = device::shared_address(walker.inputs + walker.shared.across) + walker.part * (steps / 4) * kPanelBytes;
  uint32_t a[2][2][4];
#pragma unroll
  for (int group = 0; group < steps / 2; ++group) {
    if (group >= 2) device::wgmma_wait<1>();
#pragma unroll
    for (int k = 0; k < 2; ++k) walker.operand(state, 2 * group + k, a[group % 2][k]);
    device::wgmma_fence();
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const int step = 2 * group + k;
      device::wgmma<false>(out, a[group % 2][k], device::wgmma_operand(across + step / 4 * kPanelBytes + step % 4 * 32, 16), 1);
    }
    device::wgmma_commit();
  }
  device::wgmma_wait<0>();
  device::settle(out);
}

/// Keeps the compiler from overwriting left operands before the wait for their products.
__device__ inline void settle(uint32_t (&a)[4][4]) {
#pragma unroll
  for (int k = 0; k < 4; ++k)
#pragma unroll
    for (int i = 0; i < 4; ++i) asm volatile("" : "+r"(a[k][i])::"memory");
}

/// Begins out += rows · pairsᵀ, in reverse out += rows · pairs.
template <Walk mode, int C, int threads>
__device__ inline void begin_pairs(const Walker<mode, C, threads>& walker, const uint32_t (&rows)[4][4], float (&out)[8][4]) {
  constexpr bool reverse = mode == Walk::values_reverse;
  const uint32_t pairs = device::shared_address(walker.inputs) + walker.shared.pairs;
  device::wgmma_fence();
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    uint32_t own[4];  // of two parts, the first adds the pairs
#pragma unroll
    for (int i = 0; i < 4; ++i) own[i] = walker.kParts == 2 && walker.part == 1 ? 0 : rows[k][i];
    device::wgmma<reverse>(out, own, device::wgmma_operand(pairs + (reverse ? 2048 : 32) * k, reverse ? kPanelBytes : 16), 1);
  }
  device::wgmma_commit();
}

/// Completes and stages `out`; state = decay state + rows columnsᵀ. The state decays while the pairs are added, `out` is staged while
/// the state is updated.
template <Walk mode, int C, int threads>
__device__ inline void update(const Walker<mode, C, threads>& walker, typename Walker<mode, C, threads>::Accumulators& state, float (&out)[8][4]) {
  constexpr int columns = Walker<mode, C, threads>::kColumns, width = columns < 128 ? columns : 128;  // of one product
  const uint32_t base = device::shared_address(walker.inputs), from = base + walker.shared.columns + walker.part * (columns / 64) * kPanelBytes;
  uint32_t rows[4][4];
  walker.load_rows(rows);
  if constexpr (adds_pairs(mode)) {
    walker.decay_out(out);
    begin_pairs(walker, rows, out);
  }
  walker.decay(state);
  if constexpr (adds_pairs(mode)) {  // until these products end, the rows are their operands
    device::wgmma_wait<0>();
    device::settle(out);
    settle(rows);
  }
  walker.decay_rows(rows);
  device::wgmma_fence();
#pragma unroll
  for (int k = 0; k < 4; ++k)
#pragma unroll
    for (int block = 0; block < columns / width; ++block) {
      auto& part = reinterpret_cast<float(&)[width / 8][4]>(state[block * (width / 8)]);
      device::wgmma<true>(part, rows[k], device::wgmma_operand(from + block * 2 * kPanelBytes + k * 2048, kPanelBytes), 1);
    }
  device::wgmma_commit();
  if constexpr (mode != Walk::local) walker.stage_out(out);
  device::wgmma_wait<0>();
  device::settle(state);
}

}  // namespace braid::gla_cuda::by_warpgroup
