#include "ops/repeat_heads.h"

#include "ops/checks.h"
#include "ops/rows.h"

namespace braid {

RepeatHeads::Outputs RepeatHeads::allocate(Context& ctx, const Inputs& in, const Attrs& attrs) {
  check_tensor(name, "x", in.x, {{"N"}, {"HK"}, {"D"}});
  BRAID_CHECK(attrs.groups >= 1, name, ": groups must be at least 1, got ", attrs.groups);
  return {Tensor::empty(ctx, {in.x.size(0), in.x.size(1) * attrs.groups, in.x.size(2)}, in.x.dtype())};
}

RepeatHeads::Saved RepeatHeads::forward_cpu(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out) {
  const int64_t rows = in.x.size(0) * in.x.size(1), D = in.x.size(2);
  dispatch_real(name, in.x.dtype(), [&]<class T>() {
    const T* x = in.x.data<T>();
    T* y = out.y.data<T>();
    ctx.parallel_for(rows, rows_per_range(D * attrs.groups), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        for (int64_t g = 0; g < attrs.groups; ++g) std::copy_n(x + row * D, D, y + (row * attrs.groups + g) * D);
    });
  });
  return {};
}

void RepeatHeads::backward_cpu(Context& ctx, const Saved&, const Attrs& attrs, const Outputs& d_out, Inputs& d_in) {
  if (!d_in.x) return;
  const int64_t rows = d_in.x.size(0) * d_in.x.size(1), D = d_in.x.size(2);
  dispatch_real(name, d_in.x.dtype(), [&]<class T>() {
    const T* d_y = d_out.y.data<T>();
    T* d_x = d_in.x.data<T>();
    ctx.parallel_for(rows, rows_per_range(D * attrs.groups), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        std::copy_n(d_y + row * attrs.groups * D, D, d_x + row * D);
        for (int64_t g = 1; g < attrs.groups; ++g) array(d_x + row * D, D) += array(d_y + (row * attrs.groups + g) * D, D);
      }
    });
  });
}

}  // namespace braid
