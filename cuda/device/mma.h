// Tensor-core products of one warp and the shared-memory moves that feed them, for sm_80 and later.
//
// Fragments, with lane = 4 row + pair (row = lane / 4, pair = lane % 4); two bf16 of a register are neighbours in k, the lower half first:
//   d [16, 8] f32:            d[0..1] at (row, 2 pair + 0..1), d[2..3] at (row + 8, 2 pair + 0..1)
//   a [16, 16] bf16 (m, k):   a[0] at (row, 2 pair), a[1] at (row + 8, 2 pair), a[2] at (row, 2 pair + 8), a[3] at (row + 8, 2 pair + 8)
//   b [16, 8] bf16 (k, n):    b[0] at k = 2 pair, n = row; b[1] at k = 2 pair + 8, n = row
#pragma once
#include <cuda_bf16.h>

#include <cstdint>

namespace braid::device {

/// d += a b, bf16 in, float32 sums.
__device__ inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/// Two floats rounded to bf16 in one register, `low` in the lower half.
__device__ inline uint32_t pack_bf16(float low, float high) {
  uint32_t result;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  return result;
}
__device__ inline float low_bf16(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ inline float high_bf16(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }

/// The address of shared memory as the instructions below take it.
__device__ inline uint32_t shared_address(const void* pointer) { return static_cast<uint32_t>(__cvta_generic_to_shared(pointer)); }

/// Four 8×8 matrices of 16-bit elements; lanes 8 i … 8 i + 7 give the addresses of the rows (16 bytes each) of matrix i. Lane l gets
/// elements (l / 4, 2 (l % 4) + 0..1) of matrix i in to[i]; with `_transposed` those of its transpose.
__device__ inline void ldmatrix_x4(uint32_t (&to)[4], uint32_t row_address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(row_address)
               : "memory");
}
__device__ inline void ldmatrix_x4_transposed(uint32_t (&to)[4], uint32_t row_address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(row_address)
               : "memory");
}

/// Four 8×8 matrices in the registers of ldmatrix_x4, to the rows whose addresses its lanes would give. sm_90.
__device__ inline void stmatrix_x4(uint32_t row_address, const uint32_t (&from)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row_address), "r"(from[0]), "r"(from[1]), "r"(from[2]),
               "r"(from[3])
               : "memory");
}

/// The transpose of an 8×8 matrix of 16-bit elements that the warp holds as ldmatrix gives one.
__device__ inline uint32_t transposed_8x8(uint32_t matrix) {
  uint32_t result;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(matrix));
  return result;
}

/// 16 bytes from global to shared memory without a register in between; zeros when not `live` (the address is then not read, but
/// must still be one). Both addresses are multiples of 16.
__device__ inline void cp_async16(uint32_t to_shared, const void* from_global, bool live = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to_shared), "l"(from_global), "r"(live ? 16 : 0) : "memory");
}
/// 8 bytes; both addresses are multiples of 8.
__device__ inline void cp_async8(uint32_t to_shared, const void* from_global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(to_shared), "l"(from_global) : "memory");
}
/// Closes the group of copies begun since the last call.
__device__ inline void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/// Waits until at most `pending` of this thread's groups are unfinished; others' copies need a barrier after it.
template <int pending>
__device__ inline void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

}  // namespace braid::device
