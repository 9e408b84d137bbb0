// Kernels over flat arrays, element by element, and operators that such a kernel is told at run time. Device code.
#pragma once
#include <cstring>
#include <tuple>
#include <type_traits>

#include "cuda/device/overlap.h"
#include "cuda/device/scalar.h"
#include "cuda/kernels/operands.h"
#include "cuda/runtime/check.h"
#include "ops/elementwise.h"

namespace braid {

/// One of the listed operators. Which is asked once a pack: a kernel that waits for memory has the time, and one does for all of them.
template <class List>
struct OneOf;
template <class... F>
struct OneOf<OperatorList<F...>> {
  int index = 0;
  alignas(8) unsigned char object[8] = {};

  template <class G>
  explicit OneOf(const G& op) {
    static_assert((std::is_same_v<F, G> || ...) && sizeof(G) <= sizeof(object) && std::is_trivially_copyable_v<G>);
    int i = 0;
    ((std::is_same_v<F, G> ? void(index = i) : void(), ++i), ...);
    std::memcpy(object, &op, sizeof(G));
  }
  /// body(operator)
  template <class Body>
  __device__ void visit(Body&& body) const {
    int i = 0;
    ((index == i++ ? body(*reinterpret_cast<const F*>(object)) : void()), ...);
  }
};

/// y_i = function(a_i, b_i, …) over flat arrays: 16-byte packs, then the tail one by one.
template <class Function>
struct MapParams {
  const void* in[Function::kInputs];  // [count] each
  void* out[Function::kOutputs];      // [count] each; null: not wanted
  int64_t count;
  int64_t packs;      // how many leading packs may be accessed as such: none when an address is not aligned
  Function function;  // function(const float (&in)[kInputs][size], float (&out)[kOutputs][size]) for any size
};

namespace elementwise {

template <class T, int size, class Function>
__device__ inline void map_at(const MapParams<Function>& p, int64_t at) {
  float in[Function::kInputs][size], out[Function::kOutputs][size];
#pragma unroll
  for (int i = 0; i < Function::kInputs; ++i) device::load(static_cast<const T*>(p.in[i]) + at, in[i]);
  p.function(in, out);
#pragma unroll
  for (int o = 0; o < Function::kOutputs; ++o)
    if (p.out[o]) device::store(static_cast<T*>(p.out[o]) + at, out[o]);
}

template <class T, class Function>
__global__ void map_kernel(MapParams<Function> p) {
  constexpr int kSize = device::kPackSize<T>;
  device::begin_overlapping();
  const int64_t step = int64_t{gridDim.x} * blockDim.x, thread = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  for (int64_t pack = thread; pack < p.packs; pack += step) map_at<T, kSize>(p, pack * kSize);
  for (int64_t at = p.packs * kSize + thread; at < p.count; at += step) map_at<T, 1>(p, at);
}

template <class Function>
void map(Context& ctx, std::string_view name, DType dtype, MapParams<Function> params) {
  cuda::require_kernel_dtype(name, dtype);
  const int64_t pack_size = 16 / size_bytes(dtype), blocks = (params.count / pack_size + 256) / 256;
  bool aligned = true;
  for (const void* pointer : params.in) aligned &= cuda::aligned16(pointer);
  for (const void* pointer : params.out) aligned &= cuda::aligned16(pointer);
  params.packs = aligned ? params.count / pack_size : 0;
  const cuda::LaunchConfig config{.grid = static_cast<unsigned>(params.count == 0 ? 0
                                                                : blocks < 2112   ? blocks
                                                                                  : 2112),
                                  .block = 256,
                                  .overlaps = true};
  if (dtype == DType::bf16) cuda::launch(ctx.stream(), name, &map_kernel<device::bf16, Function>, config, params);
  else cuda::launch(ctx.stream(), name, &map_kernel<float, Function>, config, params);
}

/// Names the members of every listed operator, so that they are compiled.
template <class... Operators>
auto cuda_members(OperatorList<Operators...>) {
  return std::tuple{std::pair{&Operators::forward_cuda, &Operators::backward_cuda}...};
}

}  // namespace elementwise
}  // namespace braid
