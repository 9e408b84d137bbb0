// Kernels of the elementwise operators of one tensor, from the very functions the host uses (ops/elementwise.h).
#include "cuda/kernels/elementwise/map.h"
#include "ops/cast.h"

namespace braid {
namespace {

struct UnaryForward {
  static constexpr int kInputs = 1, kOutputs = 1;
  OneOf<UnaryOperators> op;

  template <int size>
  __device__ void operator()(const float (&in)[1][size], float (&out)[1][size]) const {
    op.visit([&](const auto& f) {
#pragma unroll
      for (int i = 0; i < size; ++i) out[0][i] = f.value(in[0][i]);
    });
  }
};
struct UnaryBackward {  // in: d_y, kept
  static constexpr int kInputs = 2, kOutputs = 1;
  OneOf<UnaryOperators> op;

  template <int size>
  __device__ void operator()(const float (&in)[2][size], float (&out)[1][size]) const {
    op.visit([&](const auto& f) {
#pragma unroll
      for (int i = 0; i < size; ++i) out[0][i] = in[0][i] * f.slope(in[1][i]);
    });
  }
};

}  // namespace

template <class F>
typename Unary<F>::Saved Unary<F>::forward_cuda(Context& ctx, const Inputs& in, const F& attrs, Outputs& out) {
  elementwise::map<UnaryForward>(ctx, F::name, in.x.dtype(), {{in.x.raw()}, {out.y.raw()}, in.x.numel(), 0, {OneOf<UnaryOperators>(attrs)}});
  if constexpr (F::keeps == Keeps::input) return {in.x};
  if constexpr (F::keeps == Keeps::output) return {out.y};
  return {};
}

template <class F>
void Unary<F>::backward_cuda(Context& ctx, const Saved& saved, const F& attrs, const Outputs& d_out, Inputs& d_in) {
  const Tensor& kept = saved.kept ? saved.kept : d_out.y;
  elementwise::map<UnaryBackward>(ctx, F::name, d_out.y.dtype(),
                                  {{d_out.y.raw(), kept.raw()}, {d_in.x.raw()}, d_out.y.numel(), 0, {OneOf<UnaryOperators>(attrs)}});
}

Cast::Saved Cast::forward_cuda(Context& ctx, const Inputs& in, const Attrs&, Outputs& out) {
  convert_into(ctx, out.y, in.x, false);
  return {};
}

void Cast::backward_cuda(Context& ctx, const Saved&, const Attrs&, const Outputs& d_out, Inputs& d_in) {
  if (d_in.x) convert_into(ctx, d_in.x, d_out.y, false);
}

namespace {
[[gnu::used]] const auto kUnaryMembers = elementwise::cuda_members(UnaryOperators{});
}

}  // namespace braid
