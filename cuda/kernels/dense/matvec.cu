#include "cuda/device/math.h"
#include "cuda/device/overlap.h"
#include "cuda/device/scalar.h"
#include "cuda/kernels/dense/matvec.h"
#include "cuda/kernels/operands.h"
#include "cuda/runtime/check.h"
#include "ops/functions.h"

namespace braid::cuda {
namespace {

using device::bf16;

constexpr int kPack = 8, kWarps = 4, kStep = 32 * kPack;

struct Product {
  const bf16* weight;  // [n, k]
  const bf16* up;      // [n, k] or null
  bf16* y;             // [n]
  const void* bias;    // [n] or null
  const float* conv;   // [n, W] or null
  float* tail;         // [n, W − 1] or null
  int64_t n;
  unsigned end;  // of its blocks
  int W;
  MapActivation activation;
  bool has_float_bias;
};
struct MatvecParams {
  Product products[kMostProducts];
  const bf16* x;  // [k]
  int64_t k;
};

__device__ inline float rounded(float x) { return __bfloat162float(__float2bfloat16_rn(x)); }

__device__ inline float warp_sum(float x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
  return x;
}

/// A lane's share of one row: kUnroll loads of 16 bytes are in flight before the first is used, so that 16 warps on a multiprocessor keep
/// enough bytes on their way to use all of the memory's bandwidth.
template <int kUnroll>
struct RowPart {
  const bf16* row;
  uint4 packs[kUnroll];

  __device__ void fetch(int64_t base, int64_t k) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t at = base + u * kStep;
      packs[u] = at < k ? __ldcs(reinterpret_cast<const uint4*>(row + at)) : uint4{0, 0, 0, 0};
    }
  }
  __device__ float add_product(int u, const uint4& x, float sum) const {
    const auto* a = reinterpret_cast<const __nv_bfloat162*>(&packs[u]);
    const auto* b = reinterpret_cast<const __nv_bfloat162*>(&x);
#pragma unroll
    for (int j = 0; j < kPack / 2; ++j) {
      const float2 left = __bfloat1622float2(a[j]), right = __bfloat1622float2(b[j]);
      sum = fmaf(left.x, right.x, sum);
      sum = fmaf(left.y, right.y, sum);
    }
    return sum;
  }
};

/// What a lane has of its row's convolution: one tap, and the input there.
struct Tap {
  float weight = 0, input = 0;
  __device__ Tap(const Product& product, int64_t row, int lane) {
    if (!product.conv || lane >= product.W) return;
    weight = product.conv[row * product.W + lane];
    if (product.tail && lane + 1 < product.W) input = product.tail[row * (product.W - 1) + lane];
  }
  /// The convolution with `newest` as the last input; the tail moves on.
  __device__ float convolve(const Product& product, int64_t row, int lane, float newest) {
    if (lane + 1 == product.W) input = newest;
    const float next = __shfl_down_sync(0xffffffffu, input, 1);
    if (product.tail && lane + 1 < product.W) product.tail[row * (product.W - 1) + lane] = next;
    return warp_sum(weight * input);
  }
};

__device__ inline float bias_of(const Product& product, int64_t row) {
  return product.has_float_bias ? static_cast<const float*>(product.bias)[row] : __bfloat162float(static_cast<const bf16*>(product.bias)[row]);
}

// A warp has one row (of `up` too, with pairs). Values are rounded where operators of their own would have written them. Where a graph is recorded
// weights are fetched while x is still being computed: no recorded graph writes one, and a tail is this warp's alone.
template <int kUnroll, bool with_up>
__global__ void __launch_bounds__(32 * kWarps) matvec_kernel(const __grid_constant__ MatvecParams p) {
  device::let_next_begin();
  int i = 0;
  while (blockIdx.x >= p.products[i].end) ++i;
  const Product& product = p.products[i];
  const unsigned block = blockIdx.x - (i > 0 ? p.products[i - 1].end : 0);
  const int lane = threadIdx.x % 32;
  const int64_t row = int64_t{block} * kWarps + threadIdx.x / 32, first = lane * kPack;
  if (row >= product.n) return;
  RowPart<kUnroll> weight{product.weight + row * p.k}, up{with_up ? product.up + row * p.k : nullptr};
  weight.fetch(first, p.k);
  if constexpr (with_up) up.fetch(first, p.k);
  Tap tap(product, row, lane);
  device::wait_for_earlier_kernels();
  float sum = 0, sum_up = 0;
  for (int64_t base = first; base < p.k; base += int64_t{kUnroll} * kStep) {
    if (base > first) {
      weight.fetch(base, p.k);
      if constexpr (with_up) up.fetch(base, p.k);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t at = base + u * kStep;
      if (at >= p.k) continue;
      const uint4 x = *reinterpret_cast<const uint4*>(p.x + at);
      sum = weight.add_product(u, x, sum);
      if constexpr (with_up) sum_up = up.add_product(u, x, sum_up);
    }
  }
  float y = rounded(warp_sum(sum));
  if constexpr (with_up) {
    y = functions::silu(y) * rounded(warp_sum(sum_up));
  } else {
    if (product.bias) y = rounded(y + bias_of(product, row));
    if (product.conv) y = tap.convolve(product, row, lane, y);
    if (product.activation == MapActivation::silu) y *= device::fast_sigmoid(y);
    if (product.activation == MapActivation::sigmoid) y = functions::sigmoid(y);
  }
  if (lane == 0) product.y[row] = __float2bfloat16_rn(y);
}

}  // namespace

bool takes_vector(const Tensor& weight, const Tensor& x, const Tensor& y) {
  return weight.dtype() == DType::bf16 && x.dtype() == DType::bf16 && y.dtype() == DType::bf16 && weight.size(1) % kPack == 0 && aligned16(weight) &&
         aligned16(x);
}

void multiply_vector(Context& ctx, const Tensor& x, std::span<const VectorProduct> products) {
  MatvecParams params = {.x = reinterpret_cast<const bf16*>(x.raw()), .k = x.numel()};
  unsigned blocks = 0;
  for (size_t i = 0; i < products.size(); ++i) {
    const VectorProduct& product = products[i];
    blocks += static_cast<unsigned>((product.y.numel() + kWarps - 1) / kWarps);
    params.products[i] = {.weight = reinterpret_cast<const bf16*>(product.weight.raw()),
                          .up = static_cast<const bf16*>(address(product.up)),
                          .y = reinterpret_cast<bf16*>(product.y.raw()),
                          .bias = address(product.bias),
                          .conv = address_of<float>(product.conv),
                          .tail = address_of<float>(product.tail),
                          .n = product.y.numel(),
                          .end = blocks,
                          .W = product.conv ? static_cast<int>(product.conv.size(1)) : 0,
                          .activation = product.activation,
                          .has_float_bias = product.bias && product.bias.dtype() == DType::f32};
  }
  const LaunchConfig config{.grid = blocks, .block = 32 * kWarps, .overlaps = true};
  const bool is_short = params.k <= 4 * kStep, with_up = !products.empty() && products[0].up.defined();
  const auto plain = is_short ? &matvec_kernel<4, false> : &matvec_kernel<8, false>;
  launch(ctx.stream(), "matvec", with_up ? is_short ? &matvec_kernel<4, true> : &matvec_kernel<8, true> : plain, config, params);
}

}  // namespace braid::cuda
