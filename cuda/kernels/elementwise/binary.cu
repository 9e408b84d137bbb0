// Kernels of the elementwise operators of two tensors, from the very functions the host uses (ops/elementwise.h).
#include "cuda/kernels/elementwise/map.h"

namespace braid {
namespace {

template <class F>
inline constexpr bool kConstantSlopes = requires {
  double{F::slope_a};
};

struct BinaryForward {
  static constexpr int kInputs = 2, kOutputs = 1;
  OneOf<BinaryOperators> op;

  template <int size>
  __device__ void operator()(const float (&in)[2][size], float (&out)[1][size]) const {
    op.visit([&](const auto& f) {
#pragma unroll
      for (int i = 0; i < size; ++i) out[0][i] = f.value(in[0][i], in[1][i]);
    });
  }
};

struct BinaryBackward {  // in: d_y, a, b (d_y thrice where the slopes are constants)
  static constexpr int kInputs = 3, kOutputs = 2;
  OneOf<BinaryOperators> op;

  template <int size>
  __device__ void operator()(const float (&in)[3][size], float (&out)[2][size]) const {
    op.visit([&]<class F>(const F& f) {
#pragma unroll
      for (int i = 0; i < size; ++i) {
        if constexpr (kConstantSlopes<F>) {
          out[0][i] = in[0][i] * static_cast<float>(F::slope_a);
          out[1][i] = in[0][i] * static_cast<float>(F::slope_b);
        } else {
          out[0][i] = in[0][i] * f.slope_a(in[1][i], in[2][i]);
          out[1][i] = in[0][i] * f.slope_b(in[1][i], in[2][i]);
        }
      }
    });
  }
};

}  // namespace

template <class F>
typename Binary<F>::Saved Binary<F>::forward_cuda(Context& ctx, const Inputs& in, const F& attrs, Outputs& out) {
  elementwise::map<BinaryForward>(ctx, F::name, in.a.dtype(),
                                  {{in.a.raw(), in.b.raw()}, {out.y.raw()}, in.a.numel(), 0, {OneOf<BinaryOperators>(attrs)}});
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
  elementwise::map<BinaryBackward>(ctx, F::name, d_out.y.dtype(),
                                   {{d_out.y.raw(), a.raw(), b.raw()}, {d_a, d_b}, d_out.y.numel(), 0, {OneOf<BinaryOperators>(attrs)}});
}

namespace {
[[gnu::used]] const auto kBinaryMembers = elementwise::cuda_members(BinaryOperators{});
}

}  // namespace braid
