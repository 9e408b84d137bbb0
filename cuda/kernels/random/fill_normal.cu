#include <algorithm>

#include "cuda/runtime/check.h"
#include "ops/random_fill.h"

namespace braid {
namespace {

struct FillParams {
  void* to;  // [count]
  int64_t count;
  uint64_t seed, stream;
  double scale;
};

struct Words {
  uint32_t at[4];
};

// core/random.cpp, once more for the device: Philox4x32-10.
__device__ Words philox_words(uint64_t key, uint64_t low, uint64_t high) {
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  Words c = {{static_cast<uint32_t>(low), static_cast<uint32_t>(low >> 32), static_cast<uint32_t>(high), static_cast<uint32_t>(high >> 32)}};
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * c.at[0], p1 = uint64_t{0xCD9E8D57u} * c.at[2];
    c = {{static_cast<uint32_t>(p1 >> 32) ^ c.at[1] ^ k0, static_cast<uint32_t>(p1), static_cast<uint32_t>(p0 >> 32) ^ c.at[3] ^ k1,
          static_cast<uint32_t>(p0)}};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

__device__ double uniform_at(const FillParams& p, uint64_t position) {
  const Words words = philox_words(p.seed, position, p.stream);
  return static_cast<double>((uint64_t{words.at[0]} << 32 | words.at[1]) >> 11) * 0x1p-53;
}

// Box-Muller as in Random::normal: two draws a number.
template <class T>
__global__ void fill_kernel(FillParams p) {
  constexpr double kTwoPi = 6.283185307179586;
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < p.count; i += step) {
    const uint64_t position = 2 * static_cast<uint64_t>(i);
    const double radius = sqrt(-2.0 * log(1.0 - uniform_at(p, position)));
    static_cast<T*>(p.to)[i] = static_cast<T>(p.scale * (radius * cos(kTwoPi * uniform_at(p, position + 1))));
  }
}

}  // namespace

void fill_normal_cuda(Context& ctx, const Tensor& values, const RandomKey& key, double scale) {
  const FillParams params{values.raw(), values.numel(), key.seed, key.stream, scale};
  const int64_t blocks = std::min<int64_t>((params.count + 255) / 256, 8192);
  const cuda::LaunchConfig config{.grid = static_cast<unsigned>(blocks), .block = 256};
  if (values.dtype() == DType::f64) return cuda::launch(ctx.stream(), "fill_normal", &fill_kernel<double>, config, params);
  BRAID_CHECK(values.dtype() == DType::f32, "fill_normal: expected f64 or f32, got ", values.dtype());
  cuda::launch(ctx.stream(), "fill_normal", &fill_kernel<float>, config, params);
}

}  // namespace braid
