#include "cuda/device/overlap.h"
#include "cuda/device/scalar.h"
#include "cuda/kernels/operands.h"
#include "cuda/runtime/check.h"
#include "ops/repeat_heads.h"

namespace braid {
namespace {

struct RepeatParams {
  const void* from;  // forward: x [rows, D]; backward: d_y [rows, groups, D]
  void* to;          // forward: y [rows, groups, D]; backward: d_x [rows, D]
  int64_t count;     // rows · D
  int64_t D, groups;
  bool back;
};

// A thread has `width` neighbours of one row, for all groups.
template <class T, int width>
__global__ void __launch_bounds__(256) repeat_heads_kernel(RepeatParams p) {
  device::begin_overlapping();
  const T* from = static_cast<const T*>(p.from);
  T* to = static_cast<T*>(p.to);
  const int64_t step = int64_t{gridDim.x} * blockDim.x * width;
  for (int64_t i = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * width; i < p.count; i += step) {
    const int64_t repeated = i / p.D * p.groups * p.D + i % p.D;
    float sum[width] = {}, part[width];
    if (!p.back) device::load(from + i, sum);
    for (int64_t g = 0; g < p.groups; ++g) {
      if (!p.back) {
        device::store(to + repeated + g * p.D, sum);
        continue;
      }
      device::load(from + repeated + g * p.D, part);
#pragma unroll
      for (int j = 0; j < width; ++j) sum[j] += part[j];
    }
    if (p.back) device::store(to + i, sum);
  }
}

void repeat(Context& ctx, const Tensor& from, const Tensor& to, int64_t groups, bool back) {
  cuda::require_kernel_dtype(RepeatHeads::name, from.dtype());
  const Tensor& narrow = back ? to : from;
  const RepeatParams params{from.raw(), to.raw(), narrow.numel(), narrow.size(2), groups, back};
  const bool wide = params.D % 4 == 0 && cuda::aligned16(from) && cuda::aligned16(to);
  const int64_t blocks = (params.count / (wide ? 4 : 1) + 255) / 256;
  const cuda::LaunchConfig config{.grid = static_cast<unsigned>(blocks < 4224 ? blocks : 4224), .block = 256, .overlaps = true};
  const auto run = [&](void (*kernel)(RepeatParams)) { cuda::launch(ctx.stream(), "repeat_heads", kernel, config, params); };
  if (from.dtype() == DType::bf16) run(wide ? &repeat_heads_kernel<device::bf16, 4> : &repeat_heads_kernel<device::bf16, 1>);
  else run(wide ? &repeat_heads_kernel<float, 4> : &repeat_heads_kernel<float, 1>);
}

}  // namespace

RepeatHeads::Saved RepeatHeads::forward_cuda(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out) {
  repeat(ctx, in.x, out.y, attrs.groups, false);
  return {};
}

void RepeatHeads::backward_cuda(Context& ctx, const Saved&, const Attrs& attrs, const Outputs& d_out, Inputs& d_in) {
  if (d_in.x) repeat(ctx, d_out.y, d_in.x, attrs.groups, true);
}

}  // namespace braid
