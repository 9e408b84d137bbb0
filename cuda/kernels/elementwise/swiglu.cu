// Kernels of swiglu (ops/swiglu.h).
#include "cuda/kernels/elementwise/map.h"
#include "ops/swiglu.h"

namespace braid {
namespace {

struct SwiGluForward {
  static constexpr int kInputs = 2, kOutputs = 1;

  template <int size>
  __device__ void operator()(const float (&in)[2][size], float (&out)[1][size]) const {
#pragma unroll
    for (int i = 0; i < size; ++i) out[0][i] = functions::silu(in[0][i]) * in[1][i];
  }
};
struct SwiGluBackward {  // in: d_y, gate, up
  static constexpr int kInputs = 3, kOutputs = 2;

  template <int size>
  __device__ void operator()(const float (&in)[3][size], float (&out)[2][size]) const {
#pragma unroll
    for (int i = 0; i < size; ++i) {
      out[0][i] = in[0][i] * in[2][i] * functions::silu_slope(in[1][i]);
      out[1][i] = in[0][i] * functions::silu(in[1][i]);
    }
  }
};

}  // namespace

SwiGlu::Saved SwiGlu::forward_cuda(Context& ctx, const Inputs& in, const Attrs&, Outputs& out) {
  elementwise::map<SwiGluForward>(ctx, name, in.gate.dtype(), {{in.gate.raw(), in.up.raw()}, {out.y.raw()}, in.gate.numel(), 0, {}});
  return {in.gate, in.up};
}

void SwiGlu::backward_cuda(Context& ctx, const Saved& saved, const Attrs&, const Outputs& d_out, Inputs& d_in) {
  elementwise::map<SwiGluBackward>(
      ctx, name, saved.gate.dtype(),
      {{d_out.y.raw(), saved.gate.raw(), saved.up.raw()}, {cuda::address(d_in.gate), cuda::address(d_in.up)}, saved.gate.numel(), 0, {}});
}

}  // namespace braid
