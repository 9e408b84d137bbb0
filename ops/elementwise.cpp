#include "ops/elementwise.h"

#include <tuple>

#include "ops/lanes.h"

namespace braid {
namespace {

void check_floating(std::string_view op, std::string_view argument, const Tensor& tensor) {
  const bool good = tensor && is_floating(tensor.dtype()) && tensor.dtype() != DType::f16;
  if (!tensor) fail(op, ": ", argument, " must be floating, got nothing");
  BRAID_CHECK(good, op, ": ", argument, " must be floating, got ", tensor.dtype(), " ", tensor.shape());
}

template <class F>
constexpr bool kConstantSlopes = requires {
  double{F::slope_a};
};

/// out = function(in…) element by element; the function takes and gives Lanes of either real type.
template <class Function, class... In>
void map_tensors(Context& ctx, std::string_view op, const Tensor& out, const Function& function, const In&... in) {
  dispatch_real(op, out.dtype(), [&]<class T>() { map_lanes(ctx, out.numel(), out.data<T>(), function, in.template data<T>()...); });
}

/// d_in = slope · d_y, without a copy when the slope is 1.
void pass_on(Context& ctx, std::string_view op, double slope, const Tensor& d_y, Tensor& d_in) {
  if (!d_in) return;
  if (slope == 1) d_in = d_y;
  else
    map_tensors(
        ctx, op, d_in, [&]<class T>(const Lanes<T>& d) { return d * Lanes<T>(static_cast<T>(slope)); }, d_y);
}

}  // namespace

template <class F>
auto Unary<F>::allocate(Context& ctx, const Inputs& in, const F&) -> Outputs {
  check_floating(F::name, "x", in.x);
  return {Tensor::empty(ctx, in.x.shape(), in.x.dtype())};
}

template <class F>
auto Unary<F>::forward_cpu(Context& ctx, const Inputs& in, const F& attrs, Outputs& out) -> Saved {
  map_tensors(
      ctx, F::name, out.y, [&](const auto& x) { return attrs.value(x); }, in.x);
  if (F::keeps == Keeps::nothing) return {};
  return {F::keeps == Keeps::input ? in.x : out.y};
}

template <class F>
void Unary<F>::backward_cpu(Context& ctx, const Saved& saved, const F& attrs, const Outputs& d_out, Inputs& d_in) {
  const Tensor& kept = F::keeps == Keeps::nothing ? d_out.y : saved.kept;
  map_tensors(
      ctx, F::name, d_in.x, [&](const auto& d, const auto& at) { return d * attrs.slope(at); }, d_out.y, kept);
}

template <class F>
auto Binary<F>::allocate(Context& ctx, const Inputs& in, const F&) -> Outputs {
  check_floating(F::name, "a", in.a);
  check_floating(F::name, "b", in.b);
  BRAID_CHECK(in.b.shape() == in.a.shape() && in.b.dtype() == in.a.dtype(), F::name, ": b must be ", in.a.dtype(), " ", in.a.shape(), " like a, got ",
              in.b.dtype(), " ", in.b.shape());
  return {Tensor::empty(ctx, in.a.shape(), in.a.dtype())};
}

template <class F>
auto Binary<F>::forward_cpu(Context& ctx, const Inputs& in, const F& attrs, Outputs& out) -> Saved {
  map_tensors(
      ctx, F::name, out.y, [&](const auto& a, const auto& b) { return attrs.value(a, b); }, in.a, in.b);
  if constexpr (kConstantSlopes<F>) return {};
  else return {in.a, in.b};
}

template <class F>
void Binary<F>::backward_cpu(Context& ctx, const Saved& saved, const F& attrs, const Outputs& d_out, Inputs& d_in) {
  if constexpr (kConstantSlopes<F>) {
    pass_on(ctx, F::name, F::slope_a, d_out.y, d_in.a);
    pass_on(ctx, F::name, F::slope_b, d_out.y, d_in.b);
  } else {
    const auto d_a = [&](const auto& d, const auto& a, const auto& b) { return d * attrs.slope_a(a, b); };
    const auto d_b = [&](const auto& d, const auto& a, const auto& b) { return d * attrs.slope_b(a, b); };
    if (d_in.a) map_tensors(ctx, F::name, d_in.a, d_a, d_out.y, saved.a, saved.b);
    if (d_in.b) map_tensors(ctx, F::name, d_in.b, d_b, d_out.y, saved.a, saved.b);
  }
}

namespace {

/// Naming the members makes the compiler emit them, so that the lists in the header are the only ones.
template <class... Operators>
constexpr auto cpu_members(OperatorList<Operators...>) {
  return std::make_tuple(std::make_tuple(&Operators::allocate, &Operators::forward_cpu, &Operators::backward_cpu)...);
}
[[gnu::used]] const auto kUnaryMembers = cpu_members(UnaryOperators{});
[[gnu::used]] const auto kBinaryMembers = cpu_members(BinaryOperators{});

}  // namespace
}  // namespace braid
