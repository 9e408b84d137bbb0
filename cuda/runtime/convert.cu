#include "cuda/device/overlap.h"
#include "cuda/device/scalar.h"
#include "cuda/runtime/check.h"
#include "cuda/runtime/convert.h"
#include "cuda/runtime/usable.h"

namespace braid::cuda {
namespace {

using device::bf16;

struct ConvertParams {
  void* to;  // [count] of to_dtype: a kernel for every pair of types would be nine
  DType to_dtype;
  const void* from;  // [count]
  int64_t count;
  bool add;
};

__device__ inline double widen(double x) { return x; }
__device__ inline float widen(float x) { return x; }
__device__ inline float widen(bf16 x) { return __bfloat162float(x); }

/// The sum in the wider of both types.
template <class To, class From>
__device__ void put(void* to, int64_t i, From from, bool add) {
  To& place = static_cast<To*>(to)[i];
  place = add ? static_cast<To>(widen(place) + widen(from)) : static_cast<To>(widen(from));
}

template <class From>
__global__ void convert_kernel(ConvertParams p) {
  device::begin_overlapping();
  const From* from = static_cast<const From*>(p.from);
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < p.count; i += step) {
    if (p.to_dtype == DType::f32) put<float>(p.to, i, from[i], p.add);
    else if (p.to_dtype == DType::bf16) put<bf16>(p.to, i, from[i], p.add);
    else put<double>(p.to, i, from[i], p.add);
  }
}

template <class Body>
void with_floating(DType dtype, Body&& body) {
  if (dtype == DType::f64) return body(double{});
  if (dtype == DType::f32) return body(float{});
  BRAID_CHECK(dtype == DType::bf16, "convert: expected f64, f32 or bf16, got ", dtype);
  body(bf16{});
}

}  // namespace

void launch_convert(void* to, DType to_dtype, const void* from, DType from_dtype, int64_t count, bool add, Stream stream) {
  if (count == 0) return;
  const int64_t blocks = (count + 255) / 256;
  const LaunchConfig config{.grid = static_cast<unsigned>(blocks < 8192 ? blocks : 8192), .block = 256, .overlaps = true};
  with_floating(to_dtype, [](auto) {});  // an Error for other types
  with_floating(from_dtype, [&](auto from_type) {
    launch(stream, "convert", &convert_kernel<decltype(from_type)>, config, ConvertParams{to, to_dtype, from, count, add});
  });
}

bool has_code_for(int index) {
  cudaFuncAttributes attributes;
  const bool found = cudaSetDevice(index) == cudaSuccess && cudaFuncGetAttributes(&attributes, convert_kernel<float>) == cudaSuccess;
  cudaGetLastError();
  return found;
}

}  // namespace braid::cuda
