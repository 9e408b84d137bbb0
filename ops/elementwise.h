// Elementwise operators: each is one struct, its functions usable on the host and in a kernel, and one name in the lists at the end.
//
// value and slope are written for any T that ops/functions.h serves: a float, a double, or the host's vector of lanes. An operator
// object is its own Attrs, so it may hold numbers.
#pragma once
#include "autograd/apply.h"
#include "ops/functions.h"

namespace braid {

/// What a unary operator keeps for its gradient; slope is written in terms of that.
enum class Keeps : uint8_t { nothing, input, output };

/// y = F::value(x), d_x = d_y * F::slope(kept). x: any shape, any floating dtype; y like x.
/// Errors: an x of other numbers.
template <class F>
struct Unary {
  struct Inputs {
    Tensor x;
    static constexpr std::array<std::string_view, 1> names = {"x"};
  };
  struct Outputs {
    Tensor y;
    static constexpr std::array<std::string_view, 1> names = {"y"};
  };
  struct Saved {
    Tensor kept;
  };
  using Attrs = F;
  static Outputs allocate(Context& ctx, const Inputs& in, const F& attrs);
  static Saved forward_cpu(Context& ctx, const Inputs& in, const F& attrs, Outputs& out);
  static void backward_cpu(Context& ctx, const Saved& saved, const F& attrs, const Outputs& d_out, Inputs& d_in);
  static Saved forward_cuda(Context& ctx, const Inputs& in, const F& attrs, Outputs& out);
  static void backward_cuda(Context& ctx, const Saved& saved, const F& attrs, const Outputs& d_out, Inputs& d_in);
};

/// y = F::value(a, b), d_a = d_y * F::slope_a(a, b), d_b = d_y * F::slope_b(a, b). b like a, y like a; no broadcasting. An F with
/// constant slopes gives them as numbers, slope_a and slope_b, and keeps nothing; a slope of 1 passes the gradient on uncopied.
/// Errors: an a that is not floating, a b unlike it.
template <class F>
struct Binary {
  struct Inputs {
    Tensor a, b;
    static constexpr std::array<std::string_view, 2> names = {"a", "b"};
  };
  struct Outputs {
    Tensor y;
    static constexpr std::array<std::string_view, 1> names = {"y"};
  };
  struct Saved {
    Tensor a, b;
  };
  using Attrs = F;
  static Outputs allocate(Context& ctx, const Inputs& in, const F& attrs);
  static Saved forward_cpu(Context& ctx, const Inputs& in, const F& attrs, Outputs& out);
  static void backward_cpu(Context& ctx, const Saved& saved, const F& attrs, const Outputs& d_out, Inputs& d_in);
  static Saved forward_cuda(Context& ctx, const Inputs& in, const F& attrs, Outputs& out);
  static void backward_cuda(Context& ctx, const Saved& saved, const F& attrs, const Outputs& d_out, Inputs& d_in);
};

struct Silu : Unary<Silu> {
  static constexpr std::string_view name = "silu";
  static constexpr Keeps keeps = Keeps::input;
  BRAID_HOST_DEVICE auto value(auto x) const { return functions::silu(x); }
  BRAID_HOST_DEVICE auto slope(auto x) const { return functions::silu_slope(x); }
};

struct Sigmoid : Unary<Sigmoid> {
  static constexpr std::string_view name = "sigmoid";
  static constexpr Keeps keeps = Keeps::input;  // 1 − y of a y rounded to bf16 has no digits left near 1
  BRAID_HOST_DEVICE auto value(auto x) const { return functions::sigmoid(x); }
  BRAID_HOST_DEVICE auto slope(auto x) const { return functions::sigmoid(x) * functions::sigmoid(-x); }
};

struct LogSigmoid : Unary<LogSigmoid> {
  static constexpr std::string_view name = "log_sigmoid";
  static constexpr Keeps keeps = Keeps::input;
  BRAID_HOST_DEVICE auto value(auto x) const { return functions::log_sigmoid(x); }
  BRAID_HOST_DEVICE auto slope(auto x) const { return functions::sigmoid(-x); }
};

struct Softplus : Unary<Softplus> {
  static constexpr std::string_view name = "softplus";
  static constexpr Keeps keeps = Keeps::input;
  BRAID_HOST_DEVICE auto value(auto x) const { return functions::softplus(x); }
  BRAID_HOST_DEVICE auto slope(auto x) const { return functions::sigmoid(x); }
};

struct Exp : Unary<Exp> {
  static constexpr std::string_view name = "exp";
  static constexpr Keeps keeps = Keeps::output;
  BRAID_HOST_DEVICE auto value(auto x) const { return functions::exponential(x); }
  BRAID_HOST_DEVICE auto slope(auto y) const { return y; }
};

struct Tanh : Unary<Tanh> {
  static constexpr std::string_view name = "tanh";
  static constexpr Keeps keeps = Keeps::input;  // as sigmoid
  BRAID_HOST_DEVICE auto value(auto x) const { return functions::hyperbolic_tangent(x); }
  BRAID_HOST_DEVICE auto slope(auto x) const {
    const auto y = functions::hyperbolic_tangent(x);
    return decltype(x)(1) - y * y;
  }
};

/// y = factor · x
struct Scale : Unary<Scale> {
  static constexpr std::string_view name = "scale";
  static constexpr Keeps keeps = Keeps::nothing;
  double factor = 1;
  Scale() = default;
  explicit Scale(double by) : factor(by) {}
  BRAID_HOST_DEVICE auto value(auto x) const { return x * decltype(x)(factor); }
  BRAID_HOST_DEVICE auto slope(auto d) const { return decltype(d)(factor); }
};

struct Add : Binary<Add> {
  static constexpr std::string_view name = "add";
  static constexpr double slope_a = 1, slope_b = 1;
  BRAID_HOST_DEVICE auto value(auto a, auto b) const { return a + b; }
};

struct Sub : Binary<Sub> {
  static constexpr std::string_view name = "sub";
  static constexpr double slope_a = 1, slope_b = -1;
  BRAID_HOST_DEVICE auto value(auto a, auto b) const { return a - b; }
};

struct Mul : Binary<Mul> {
  static constexpr std::string_view name = "mul";
  BRAID_HOST_DEVICE auto value(auto a, auto b) const { return a * b; }
  BRAID_HOST_DEVICE auto slope_a(auto, auto b) const { return b; }
  BRAID_HOST_DEVICE auto slope_b(auto a, auto) const { return a; }
};

template <class... Operators>
struct OperatorList {
  static_assert((Differentiable<Operators> && ...));
};
/// Every elementwise operator: what is instantiated, here and on the GPU.
using UnaryOperators = OperatorList<Silu, Sigmoid, LogSigmoid, Softplus, Exp, Tanh, Scale>;
using BinaryOperators = OperatorList<Add, Sub, Mul>;

}  // namespace braid
