// Kernels of the elementwise operators, from the very functions the host uses (ops/elementwise.h).
#include <tuple>

#include "cuda/device/overlap.h"
#include "cuda/device/scalar.h"
#include "cuda/kernels/operands.h"
#include "cuda/runtime/check.h"
#include "ops/cast.h"
#include "ops/elementwise.h"
#include "ops/swiglu.h"

namespace braid {
namespace {

using device::kPackSize;

/// y_i = F(a_i, b_i, …) over flat arrays: 16-byte packs, then the tail one by one.
template <class F, int inputs, int outputs>
struct MapParams {
  const void* in[inputs];  // [count] each
  void* out[outputs];      // [count] each; null: not wanted
  int64_t count;
  int64_t packs;  // how many leading packs may be accessed as such: none when an address is not aligned
  F function;     // function(const float (&in)[inputs], float (&out)[outputs])
};

template <class T, class F, int inputs, int outputs>
__global__ void map_kernel(MapParams<F, inputs, outputs> p) {
  constexpr int kSize = kPackSize<T>;
  device::let_next_begin();
  const int64_t packs = p.packs, step = int64_t{gridDim.x} * blockDim.x;
  const int64_t thread = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  float x[inputs][kSize], y[outputs][kSize], in[inputs], out[outputs];
  for (int64_t pack = thread; pack < packs; pack += step) {
#pragma unroll
    for (int i = 0; i < inputs; ++i) device::load(static_cast<const T*>(p.in[i]) + pack * kSize, x[i]);
#pragma unroll
    for (int j = 0; j < kSize; ++j) {
#pragma unroll
      for (int i = 0; i < inputs; ++i) in[i] = x[i][j];
      p.function(in, out);
#pragma unroll
      for (int o = 0; o < outputs; ++o) y[o][j] = out[o];
    }
#pragma unroll
    for (int o = 0; o < outputs; ++o)
      if (p.out[o]) device::store(static_cast<T*>(p.out[o]) + pack * kSize, y[o]);
  }
  for (int64_t at = packs * kSize + thread; at < p.count; at += step) {
#pragma unroll
    for (int i = 0; i < inputs; ++i) in[i] = device::to_float(static_cast<const T*>(p.in[i])[at]);
    p.function(in, out);
#pragma unroll
    for (int o = 0; o < outputs; ++o)
      if (p.out[o]) static_cast<T*>(p.out[o])[at] = device::from_float<T>(out[o]);
  }
}

template <class F, int inputs, int outputs>
void map(Context& ctx, std::string_view name, DType dtype, MapParams<F, inputs, outputs> params) {
  cuda::require_kernel_dtype(name, dtype);
  const int64_t pack_size = 16 / size_bytes(dtype), blocks = (params.count / pack_size + 256) / 256;
  bool aligned = true;
  for (const void* pointer : params.in) aligned &= cuda::aligned16(pointer);
  for (const void* pointer : params.out) aligned &= cuda::aligned16(pointer);
  params.packs = aligned ? params.count / pack_size : 0;
  const cuda::LaunchConfig config{.grid = static_cast<unsigned>(params.count == 0 ? 0 : blocks < 2112 ? blocks : 2112), .block = 256};
  if (dtype == DType::bf16) cuda::launch(ctx.stream(), name, &map_kernel<device::bf16, F, inputs, outputs>, config, params);
  else cuda::launch(ctx.stream(), name, &map_kernel<float, F, inputs, outputs>, config, params);
}

template <class F>
struct UnaryForward {
  F op;
  __device__ void operator()(const float (&in)[1], float (&out)[1]) const { out[0] = op.value(in[0]); }
};
template <class F>
struct UnaryBackward {  // in: d_y, kept
  F op;
  __device__ void operator()(const float (&in)[2], float (&out)[1]) const { out[0] = in[0] * op.slope(in[1]); }
};
template <class F>
struct BinaryForward {
  F op;
  __device__ void operator()(const float (&in)[2], float (&out)[1]) const { out[0] = op.value(in[0], in[1]); }
};
template <class F>
inline constexpr bool kConstantSlopes = requires {
  double{F::slope_a};
};

template <class F>
struct BinaryBackward {  // in: d_y, a, b (d_y thrice where the slopes are constants)
  F op;
  __device__ void operator()(const float (&in)[3], float (&out)[2]) const {
    if constexpr (kConstantSlopes<F>) {
      out[0] = in[0] * static_cast<float>(F::slope_a);
      out[1] = in[0] * static_cast<float>(F::slope_b);
    } else {
      out[0] = in[0] * op.slope_a(in[1], in[2]);
      out[1] = in[0] * op.slope_b(in[1], in[2]);
    }
  }
};

struct SwiGluForward {
  __device__ void operator()(const float (&in)[2], float (&out)[1]) const { out[0] = functions::silu(in[0]) * in[1]; }
};
struct SwiGluBackward {  // in: d_y, gate, up
  __device__ void operator()(const float (&in)[3], float (&out)[2]) const {
    out[0] = in[0] * in[2] * functions::silu_slope(in[1]);
    out[1] = in[0] * functions::silu(in[1]);
  }
};

}  // namespace

template <class F>
typename Unary<F>::Saved Unary<F>::forward_cuda(Context& ctx, const Inputs& in, const F& attrs, Outputs& out) {
  map(ctx, F::name, in.x.dtype(), MapParams<UnaryForward<F>, 1, 1>{{in.x.raw()}, {out.y.raw()}, in.x.numel(), 0, {attrs}});
  if constexpr (F::keeps == Keeps::input) return {in.x};
  if constexpr (F::keeps == Keeps::output) return {out.y};
  return {};
}

template <class F>
void Unary<F>::backward_cuda(Context& ctx, const Saved& saved, const F& attrs, const Outputs& d_out, Inputs& d_in) {
  const Tensor& kept = saved.kept ? saved.kept : d_out.y;
  map(ctx, F::name, d_out.y.dtype(), MapParams<UnaryBackward<F>, 2, 1>{{d_out.y.raw(), kept.raw()}, {d_in.x.raw()}, d_out.y.numel(), 0, {attrs}});
}

template <class F>
typename Binary<F>::Saved Binary<F>::forward_cuda(Context& ctx, const Inputs& in, const F& attrs, Outputs& out) {
  map(ctx, F::name, in.a.dtype(), MapParams<BinaryForward<F>, 2, 1>{{in.a.raw(), in.b.raw()}, {out.y.raw()}, in.a.numel(), 0, {attrs}});
  if constexpr (kConstantSlopes<F>) return {};
  return {in.a, in.b};
}

template <class F>
void Binary<F>::backward_cuda(Context& ctx, const Saved& saved, const F& attrs, const Outputs& d_out, Inputs& d_in) {
  if constexpr (kConstantSlopes<F>) {  // a slope of 1 passes the gradient on uncopied
    if (F::slope_a == 1 && d_in.a) d_in.a = d_out.y;
    if (F::slope_b == 1 && d_in.b) d_in.b = d_out.y;
    if (F::slope_a == 1 && F::slope_b == 1) return;
  }
  const Tensor& a = saved.a ? saved.a : d_out.y;
  const Tensor& b = saved.b ? saved.b : d_out.y;
  void* d_a = d_in.a && d_in.a.raw() != d_out.y.raw() ? d_in.a.raw() : nullptr;
  void* d_b = d_in.b && d_in.b.raw() != d_out.y.raw() ? d_in.b.raw() : nullptr;
  map(ctx, F::name, d_out.y.dtype(), MapParams<BinaryBackward<F>, 3, 2>{{d_out.y.raw(), a.raw(), b.raw()}, {d_a, d_b}, d_out.y.numel(), 0, {attrs}});
}

SwiGlu::Saved SwiGlu::forward_cuda(Context& ctx, const Inputs& in, const Attrs&, Outputs& out) {
  map(ctx, name, in.gate.dtype(), MapParams<SwiGluForward, 2, 1>{{in.gate.raw(), in.up.raw()}, {out.y.raw()}, in.gate.numel(), 0, {}});
  return {in.gate, in.up};
}

void SwiGlu::backward_cuda(Context& ctx, const Saved& saved, const Attrs&, const Outputs& d_out, Inputs& d_in) {
  map(ctx, name, saved.gate.dtype(),
      MapParams<SwiGluBackward, 3, 2>{
          {d_out.y.raw(), saved.gate.raw(), saved.up.raw()}, {cuda::address(d_in.gate), cuda::address(d_in.up)}, saved.gate.numel(), 0, {}});
}

Cast::Saved Cast::forward_cuda(Context& ctx, const Inputs& in, const Attrs&, Outputs& out) {
  convert_into(ctx, out.y, in.x, false);
  return {};
}

void Cast::backward_cuda(Context& ctx, const Saved&, const Attrs&, const Outputs& d_out, Inputs& d_in) {
  if (d_in.x) convert_into(ctx, d_in.x, d_out.y, false);
}

namespace {

/// Names the members of every listed operator, so that they are compiled here.
template <class... Operators>
auto cuda_members(OperatorList<Operators...>) {
  return std::tuple{std::pair{&Operators::forward_cuda, &Operators::backward_cuda}...};
}
[[gnu::used]] const auto kUnaryMembers = cuda_members(UnaryOperators{});
[[gnu::used]] const auto kBinaryMembers = cuda_members(BinaryOperators{});

}  // namespace

}  // namespace braid
