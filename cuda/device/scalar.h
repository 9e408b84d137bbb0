// Scalars in kernels: bf16 and float loads and stores, all arithmetic in float (double stays double).
#pragma once
#include <cuda_bf16.h>

#include <cstdint>

namespace braid::device {

using bf16 = __nv_bfloat16;

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(bf16 x) { return __bfloat162float(x); }

template <class T>
__device__ inline T from_float(float x);
template <>
__device__ inline float from_float<float>(float x) {
  return x;
}
template <>
__device__ inline bf16 from_float<bf16>(float x) {
  return __float2bfloat16_rn(x);
}

/// `size` elements moved as one access of up to 16 bytes; the address must be aligned to that.
template <class T, int size>
struct alignas(sizeof(T) * size) Pack {
  T at[size];
};

/// Elements of T in a 16-byte access.
template <class T>
inline constexpr int kPackSize = 16 / sizeof(T);

template <class T, int size>
__device__ inline void load(const T* from, float (&to)[size]) {
  const auto pack = *reinterpret_cast<const Pack<T, size>*>(from);
#pragma unroll
  for (int i = 0; i < size; ++i) to[i] = to_float(pack.at[i]);
}

template <class T, int size>
__device__ inline void store(T* to, const float (&from)[size]) {
  Pack<T, size> pack;
#pragma unroll
  for (int i = 0; i < size; ++i) pack.at[i] = from_float<T>(from[i]);
  *reinterpret_cast<Pack<T, size>*>(to) = pack;
}

}  // namespace braid::device
