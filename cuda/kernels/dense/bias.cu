#include "cuda/device/overlap.h"
#include "cuda/device/scalar.h"
#include "cuda/kernels/dense/bias.h"
#include "cuda/kernels/norms/column_sums.h"
#include "cuda/kernels/operands.h"
#include "cuda/runtime/check.h"

namespace braid::cuda {
namespace {

constexpr int64_t kRowsPerBlock = 512;

struct BiasParams {
  void* y;           // [rows, D]
  const void* bias;  // [D]
  int64_t count, D;
};

template <class T, class B>
__global__ void bias_kernel(BiasParams p) {
  device::begin_overlapping();
  T* y = static_cast<T*>(p.y);
  const B* bias = static_cast<const B*>(p.bias);
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < p.count; i += step)
    y[i] = device::from_float<T>(device::to_float(y[i]) + device::to_float(bias[i % p.D]));
}

struct SumRowsParams {
  const void* x;    // [rows, D]
  float* partials;  // [blocks, D]
  int64_t rows, D;
};

template <class T>
__global__ void sum_rows_kernel(SumRowsParams p) {
  const int64_t column = int64_t{blockIdx.y} * blockDim.x + threadIdx.x;
  if (column >= p.D) return;
  const int64_t begin = int64_t{blockIdx.x} * kRowsPerBlock, end = min(p.rows, begin + kRowsPerBlock);
  float sum = 0;
  for (int64_t row = begin; row < end; ++row) sum += device::to_float(static_cast<const T*>(p.x)[row * p.D + column]);
  p.partials[int64_t{blockIdx.x} * p.D + column] = sum;
}

}  // namespace

void add_bias(Context& ctx, const Tensor& y, const Tensor& bias) {
  require_kernel_dtype("linear", y.dtype());
  const BiasParams params{y.raw(), bias.raw(), y.numel(), y.size(-1)};
  const int64_t blocks = (params.count + 255) / 256;
  const LaunchConfig config{.grid = static_cast<unsigned>(blocks < 4224 ? blocks : 4224), .block = 256, .overlaps = true};
  if (y.dtype() == DType::f32) launch(ctx.stream(), "add_bias", &bias_kernel<float, float>, config, params);
  else if (bias.dtype() == DType::f32) launch(ctx.stream(), "add_bias", &bias_kernel<device::bf16, float>, config, params);
  else launch(ctx.stream(), "add_bias", &bias_kernel<device::bf16, device::bf16>, config, params);
}

void sum_rows(Context& ctx, const Tensor& x, const Tensor& total) {
  require_kernel_dtype("linear", x.dtype());
  const int64_t rows = num_rows(x), D = x.size(-1), strips = (rows + kRowsPerBlock - 1) / kRowsPerBlock;
  const Tensor partials = Tensor::empty(ctx, {strips, D}, DType::f32);
  const SumRowsParams params{x.raw(), partials.data<float>(), rows, D};
  const LaunchConfig config{.grid = dim3(static_cast<unsigned>(strips), static_cast<unsigned>((D + 127) / 128)), .block = 128};
  if (x.dtype() == DType::f32) launch(ctx.stream(), "sum_rows", &sum_rows_kernel<float>, config, params);
  else launch(ctx.stream(), "sum_rows", &sum_rows_kernel<device::bf16>, config, params);
  sum_partials(ctx, partials, total);
}

}  // namespace braid::cuda
