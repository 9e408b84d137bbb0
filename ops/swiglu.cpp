#include "ops/swiglu.h"

#include "ops/functions.h"
#include "ops/lanes.h"

namespace braid {

SwiGlu::Outputs SwiGlu::allocate(Context& ctx, const Inputs& in, const Attrs&) {
  BRAID_CHECK(in.gate && is_floating(in.gate.dtype()), name, ": gate must be floating, got ", in.gate.dtype(), " ", in.gate.shape());
  BRAID_CHECK(in.up && in.up.shape() == in.gate.shape() && in.up.dtype() == in.gate.dtype(), name, ": up must be ", in.gate.dtype(), " ",
              in.gate.shape(), " like gate, got ", in.up.dtype(), " ", in.up.shape());
  return {Tensor::empty(ctx, in.gate.shape(), in.gate.dtype())};
}

SwiGlu::Saved SwiGlu::forward_cpu(Context& ctx, const Inputs& in, const Attrs&, Outputs& out) {
  dispatch_real(name, in.gate.dtype(), [&]<class T>() {
    const auto value = [](const Lanes<T>& gate, const Lanes<T>& up) { return functions::silu(gate) * up; };
    map_lanes(ctx, in.gate.numel(), out.y.data<T>(), value, in.gate.data<T>(), in.up.data<T>());
  });
  return {in.gate, in.up};
}

void SwiGlu::backward_cpu(Context& ctx, const Saved& saved, const Attrs&, const Outputs& d_out, Inputs& d_in) {
  dispatch_real(name, saved.gate.dtype(), [&]<class T>() {
    const T *gate = saved.gate.data<T>(), *up = saved.up.data<T>(), *d_y = d_out.y.data<T>();
    T *d_gate = data_or_null<T>(d_in.gate), *d_up = data_or_null<T>(d_in.up);
    parallel_elements(ctx, saved.gate.numel(), [&](int64_t begin, int64_t end) {
      for_lanes(end - begin, [&](int64_t offset, auto count) {
        const int64_t i = begin + offset;
        const auto z = Lanes<T>::load(gate + i, count), d = Lanes<T>::load(d_y + i, count);
        const Lanes<T> s = functions::sigmoid(z), zs = z * s;
        if (d_gate) (d * Lanes<T>::load(up + i, count) * (s + zs * (Lanes<T>(1) - s))).store(d_gate + i, count);
        if (d_up) (d * zs).store(d_up + i, count);
      });
    });
  });
}

}  // namespace braid
