// Tiles of bf16 in shared memory and their fragments. A tile [rows, width] keeps the 16-byte pieces of a row in an order that differs
// from row to row, so that the eight rows an ldmatrix reads at once lie in different banks. Lower triangles of [64, 64] are blocks of
// [16, 16]; they lie in global memory in the same order and are copied as they are.
#pragma once
#include "cuda/device/mma.h"
#include "cuda/device/scalar.h"

namespace braid::delta_cuda {

/// Bytes from a tile's start to (row, column); column a multiple of 8.
template <int width>
__device__ inline uint32_t tile_offset(int row, int column) {
  static_assert(width == 16 || width == 32 || width % 64 == 0);
  const int piece = column / 8, order = width == 16 ? row / 4 % 2 : width == 32 ? row / 2 % 4 : row % 8;
  return static_cast<uint32_t>(row * width * 2 + (piece ^ order) * 16);
}

/// The row that this lane gives to ldmatrix_x4 for a block [16, 16]. Of its quarters, matrices 1 and 2 are the upper right and the lower
/// left one (by_rows), or the other way round. by_rows: B fragments of two n-tiles from rows n; transposed, A fragments from rows k.
/// !by_rows: A fragments; transposed, B fragments of two n-tiles from rows k.
template <int width, bool by_rows>
__device__ inline uint32_t lane_offset() {
  const int lane = threadIdx.x % 32, one = lane / 8 % 2 * 8, two = lane / 16 * 8;
  return tile_offset<width>(lane % 8 + (by_rows ? two : one), by_rows ? one : two);
}
/// The same for the block at (row, column), both multiples of 16: one exclusive or away, so that addresses need few registers.
template <int width>
__device__ inline uint32_t block_at(uint32_t lane_offset, int row, int column) {
  return (lane_offset ^ (column * 2 % 128)) + row * width * 2 + column * 2 / 128 * 128;
}

/// A lower triangle: of its 16 blocks [16, 16] the ten that are not above the diagonal, row by row.
inline constexpr int kBlockBytes = 16 * 16 * 2, kTriangleBytes = 10 * kBlockBytes, kTriangle = kTriangleBytes / 2;
/// Bytes to block (row, column), row >= column; within it as in a tile [16, 16].
__host__ __device__ constexpr int triangle_block(int row, int column) { return (row * (row + 1) / 2 + column) * kBlockBytes; }
/// Bytes to (row, column) of a triangle; column a multiple of 8.
__device__ inline uint32_t triangle_offset(int row, int column) {
  return triangle_block(row / 16, column / 16) + tile_offset<16>(row % 16, column % 16);
}

/// d0, d1 += a b for two n-tiles.
__device__ inline void mma_two(float (&d0)[4], float (&d1)[4], const uint32_t (&a)[4], const uint32_t (&b)[4]) {
  const uint32_t first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
  device::mma_bf16(d0, a, first);
  device::mma_bf16(d1, a, second);
}

/// The A fragment [16, 16] whose two n-tiles of sums are c0 and c1.
__device__ inline void to_fragment(uint32_t (&a)[4], const float (&c0)[4], const float (&c1)[4]) {
  a[0] = device::pack_bf16(c0[0], c0[1]), a[1] = device::pack_bf16(c0[2], c0[3]);
  a[2] = device::pack_bf16(c1[0], c1[1]), a[3] = device::pack_bf16(c1[2], c1[3]);
}
__device__ inline uint32_t rest_of(uint32_t pair, float low, float high) {
  return device::pack_bf16(low - device::low_bf16(pair), high - device::high_bf16(pair));
}
/// What rounding left over: a + rest has 16 bits of mantissa.
__device__ inline void to_fragments(uint32_t (&a)[4], uint32_t (&rest)[4], const float (&c0)[4], const float (&c1)[4]) {
  to_fragment(a, c0, c1);
  rest[0] = rest_of(a[0], c0[0], c0[1]), rest[1] = rest_of(a[1], c0[2], c0[3]);
  rest[2] = rest_of(a[2], c1[0], c1[1]), rest[3] = rest_of(a[3], c1[2], c1[3]);
}

/// Sums [16 columns, tokens or channels] times a factor of each token or channel.
template <int tiles>
__device__ inline void scale_each(float (&c)[tiles][4], const float* factor) {
#pragma unroll
  for (int n = 0; n < tiles; ++n) {
    const float2 f = *reinterpret_cast<const float2*>(factor + 8 * n + threadIdx.x % 4 * 2);
    c[n][0] *= f.x, c[n][1] *= f.y, c[n][2] *= f.x, c[n][3] *= f.y;
  }
}
__device__ inline uint32_t transposed(uint32_t x) {
  uint32_t y;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}

/// Lanes hold elements (2 pair, 2 pair + 1) of two neighbouring 8-element pieces in x and y; afterwards an even lane holds four
/// neighbours of the first piece, an odd one four of the second, at column pair_column(): a row's 32 bytes leave in one store.
__device__ inline uint2 paired(uint32_t x, uint32_t y) {
  const bool odd = threadIdx.x % 2;
  const uint32_t other = __shfl_xor_sync(0xffffffffu, odd ? x : y, 1);
  return odd ? make_uint2(other, y) : make_uint2(x, other);
}
__device__ inline int pair_column() {
  const int pair = threadIdx.x % 4;
  return pair % 2 ? 8 + 2 * (pair - 1) : 2 * pair;
}

/// Copies a tile [rows, width] whose rows lie `stride` elements apart; rows from `count` on become zero. Threads 0 ≤ thread < threads
/// share it; `from` must be an address that can be read even if count is 0. A thread keeps to one piece of its rows: of a whole tile, what is
/// left of the addresses is an addition and an exclusive or.
template <int width, int threads, int rows = 64>
__device__ inline void copy_rows(uint32_t tile, const device::bf16* from, int64_t stride, int count, int thread) {
  constexpr int kPieces = width / 8, kStep = threads / kPieces, kCount = rows / kStep;
  static_assert(threads % kPieces == 0 && rows % kStep == 0 && (kStep % 8 == 0 || (width % 64 == 0 && 8 % kStep == 0)));
  const int row = thread / kPieces, piece = thread % kPieces;
  const uint32_t to = tile + tile_offset<width>(row, piece * 8);
  const auto place = [&](int i) { return (to ^ (i * kStep % 8 * 16)) + i * kStep * width * 2; };
  const device::bf16* at = from + row * stride + piece * 8;
  if (count >= rows) {
#pragma unroll
    for (int i = 0; i < kCount; ++i, at += kStep * stride) device::cp_async16(place(i), at);
  } else {
#pragma unroll 1
    for (int i = 0; i < kCount; ++i, at += kStep * stride) {
      const bool live = row + i * kStep < count;
      device::cp_async16(place(i), live ? at : from, live);
    }
  }
}
/// Writes the first `count` rows of a tile [64, width].
template <int width, int threads>
__device__ inline void store_rows(const unsigned char* tile, device::bf16* to, int64_t stride, int count, int thread) {
  constexpr int kPieces = width / 8;
#pragma unroll
  for (int i = 0; i < 64 * kPieces / threads; ++i) {
    const int at = i * threads + thread, row = at / kPieces, piece = at % kPieces;
    if (row < count)
      *reinterpret_cast<uint4*>(to + row * stride + piece * 8) = *reinterpret_cast<const uint4*>(tile + tile_offset<width>(row, piece * 8));
  }
}
/// Copies bytes as they lie.
template <int bytes, int threads>
__device__ inline void copy_bytes(uint32_t to, const void* from, int thread) {
#pragma unroll
  for (int at = 0; at < bytes; at += threads * 16)
    if (bytes % (threads * 16) == 0 || at + thread * 16 < bytes)
      device::cp_async16(to + at + thread * 16, static_cast<const char*>(from) + at + thread * 16);
}

}  // namespace braid::delta_cuda
