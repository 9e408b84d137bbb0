// Fragments of transposed matrices (columns of V as rows) to and from global memory.
#pragma once
#include "cuda/kernels/gated_delta_rule/chunks.h"
#include "cuda/kernels/gated_delta_rule/rest.h"
#include "cuda/kernels/gated_delta_rule/tiles.h"

namespace braid::delta_cuda {

/// Writes [16 columns, 8 tokens] as two registers of pairs of tokens to rows `stride` apart; `to` is the first token's row.
__device__ inline void store_tokens(bf16* to, int64_t stride, int count, int token, uint32_t low, uint32_t high) {
  const uint2 four = paired(transposed(low), transposed(high));
  token += threadIdx.x % 32 / 4;
  if (token < count) *reinterpret_cast<uint2*>(to + token * stride + pair_column()) = four;
}
/// The A fragment of 16 tokens, from `token` on.
__device__ inline void store_fragment(bf16* to, int64_t stride, int count, int token, const uint32_t (&a)[4]) {
  store_tokens(to, stride, count, token, a[0], a[1]);
  store_tokens(to, stride, count, token + 8, a[2], a[3]);
}
/// The digits of its rest; `to` is row 0 of the group's columns.
__device__ inline void store_digits(uint8_t* to, int64_t stride, int count, int token, const uint32_t (&a)[4], const uint32_t (&rest)[4]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint32_t low = to_digits(a[2 * half], rest[2 * half]), high = to_digits(a[2 * half + 1], rest[2 * half + 1]);
    const uint32_t word = transposed(join_digits(low, high));
    const int row = token + 8 * half + threadIdx.x % 32 / 4;
    if (row < count) *reinterpret_cast<uint32_t*>(to + row * stride + threadIdx.x % 4 * 4) = word;
  }
}
__device__ inline void store_sums(bf16* to, int64_t stride, int count, const float (&c)[8][4]) {
#pragma unroll
  for (int n = 0; n < 8; ++n) store_tokens(to, stride, count, 8 * n, device::pack_bf16(c[n][0], c[n][1]), device::pack_bf16(c[n][2], c[n][3]));
}

/// Fragment n of S^T as bf16 to rows [V, K] of a kept state; `to` is row 0 of the group's columns.
__device__ inline void store_state_fragment(bf16* to, int64_t K, int n, const uint32_t (&a)[4]) {
  bf16* at = to + threadIdx.x % 32 / 4 * K + 16 * n + pair_column();
  *reinterpret_cast<uint2*>(at) = paired(a[0], a[2]);
  *reinterpret_cast<uint2*>(at + 8 * K) = paired(a[1], a[3]);
}

/// S^T of 16 columns and `keys` channels from and to a state [K, V] in float32; null: zeros.
template <int keys>
__device__ inline void load_state(float (&state)[keys / 8][4], const float* from, int64_t V) {
  const int row = threadIdx.x % 32 / 4, pair = threadIdx.x % 4;
#pragma unroll
  for (int n = 0; n < keys / 8; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) state[n][i] = from ? from[(8 * n + 2 * pair + i % 2) * V + row + i / 2 * 8] : 0.0f;
}
template <int keys>
__device__ inline void store_state(const float (&state)[keys / 8][4], float* to, int64_t V) {
  const int row = threadIdx.x % 32 / 4, pair = threadIdx.x % 4;
#pragma unroll
  for (int n = 0; n < keys / 8; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) to[(8 * n + 2 * pair + i % 2) * V + row + i / 2 * 8] = state[n][i];
}

}  // namespace braid::delta_cuda
