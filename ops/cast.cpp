#include "ops/cast.h"

namespace braid {
namespace {

bool is_computed_in(DType dtype) { return dtype == DType::f64 || dtype == DType::f32 || dtype == DType::bf16; }

}  // namespace

Cast::Outputs Cast::allocate(Context& ctx, const Inputs& in, const Attrs& attrs) {
  if (!in.x) fail(name, ": x must be f64, f32 or bf16, got nothing");
  BRAID_CHECK(is_computed_in(in.x.dtype()), name, ": x must be f64, f32 or bf16, got ", in.x.dtype(), " ", in.x.shape());
  BRAID_CHECK(is_computed_in(attrs.dtype), name, ": dtype must be f64, f32 or bf16, got ", attrs.dtype);
  return {Tensor::empty(ctx, in.x.shape(), attrs.dtype)};
}

Cast::Saved Cast::forward_cpu(Context& ctx, const Inputs& in, const Attrs&, Outputs& out) {
  convert_into(ctx, out.y, in.x, false);
  return {};
}

void Cast::backward_cpu(Context& ctx, const Saved&, const Attrs&, const Outputs& d_out, Inputs& d_in) { convert_into(ctx, d_in.x, d_out.y, false); }

}  // namespace braid
