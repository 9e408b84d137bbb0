// What rounding to bf16 left over, in 7 bits: beside a bf16 x = m 2^e, 1 <= m < 2, a byte d says that x + (d − 64) 2^(e − 14) was meant. Numbers that
// cancel in sums (U, dR) keep 15 bits of mantissa in three bytes.
//
// Of 16 neighbouring columns of a row the digits lie in one piece of 16 bytes, ordered so that a lane that holds columns 2 pair, 2 pair + 1 and
// 2 pair + 8, 2 pair + 9 as mma wants them finds its four in one word: 2 pair, 2 pair + 8, 2 pair + 1, 2 pair + 9.
#pragma once
#include "cuda/kernels/gated_delta_rule/tiles.h"

namespace braid::delta_cuda {

/// a b + c of two bf16 each.
__device__ inline uint32_t multiply_add(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t result;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
  return result;
}
inline constexpr uint32_t kExponents = 0x7f807f80u, kNothing = 0x80008000u;

/// The digits of a pair's rest, as the lower bytes of 128 + digit in bf16.
__device__ inline uint32_t to_digits(uint32_t pair, uint32_t rest) {
  const uint32_t inverse = 0x7f007f00u - (pair & kExponents);                            // 2^−e
  return multiply_add(multiply_add(rest, inverse, kNothing), 0x46804680u, 0x43404340u);  // 2^14, 192
}
/// The rest of a pair from its digits.
__device__ inline uint32_t from_digits(uint32_t pair, uint32_t digits) {
  return multiply_add(multiply_add(digits, 0x38803880u, 0xbc40bc40u), pair & kExponents, kNothing);  // 2^−14, −192 · 2^−14
}

/// Digits of two pairs of columns, eight apart, of two tokens each: of a token, those of both columns are neighbours.
__device__ inline uint32_t join_digits(uint32_t low, uint32_t high) { return __byte_perm(low, high, 0x6240); }
/// Rests of columns 2 pair + 0..1 and 2 pair + 8..9 of a token from their word.
__device__ inline void split_rests(uint32_t word, uint32_t low_pair, uint32_t high_pair, uint32_t& low, uint32_t& high) {
  low = from_digits(low_pair, __byte_perm(word, 0x43434343u, 0x4240)), high = from_digits(high_pair, __byte_perm(word, 0x43434343u, 0x4341));
}

/// The rest of the A fragment a from the digits of its tokens, and of those eight further on.
__device__ inline void rest_of_rows(uint32_t (&rest)[4], const uint32_t (&a)[4], uint32_t digits, uint32_t next_digits) {
  split_rests(digits, a[0], a[2], rest[0], rest[2]);
  split_rests(next_digits, a[1], a[3], rest[1], rest[3]);
}
/// The same in place of the B fragments of two n-tiles.
__device__ inline void rest_of_others(uint32_t (&b)[4], uint32_t digits, uint32_t next_digits) {
  split_rests(digits, b[0], b[1], b[0], b[1]);
  split_rests(next_digits, b[2], b[3], b[2], b[3]);
}

}  // namespace braid::delta_cuda
