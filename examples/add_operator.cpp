// An operator defined outside the library, step by step as README.md says; the program checks it.
//
//   y = cap · tanh(x / cap),   d_x = d_y · (1 − (y / cap)²)
//
// Logit soft-capping, as in Gemma 2 (Gemma team, 2024).
#include <cmath>
#include <cstdio>

#include "autograd/gradcheck.h"
#include "core/dispatch.h"

namespace {

using namespace braid;

struct SoftCap {
  // 1. A name, and records of named tensors. Numbers go to Attrs; Saved is what backward needs, and nothing else.
  static constexpr std::string_view name = "soft_cap";
  struct Inputs {
    Tensor x;  // any shape, floating
    static constexpr std::array<std::string_view, 1> names = {"x"};
  };
  struct Outputs {
    Tensor y;  // like x
    static constexpr std::array<std::string_view, 1> names = {"y"};
  };
  struct Saved {
    Tensor y;
  };
  struct Attrs {
    double cap = 30;
  };

  // 2. All checks, and the outputs.
  static Outputs allocate(Context& ctx, const Inputs& in, const Attrs& attrs) {
    BRAID_CHECK(in.x && is_floating(in.x.dtype()), name, ": x must be floating, got ", in.x.dtype());
    BRAID_CHECK(attrs.cap > 0, name, ": cap must be positive, got ", attrs.cap);
    return {Tensor::empty(ctx, in.x.shape(), in.x.dtype())};
  }

  // 3. Forward and backward for float and double; bfloat16 and GPUs without a kernel come for free.
  static Saved forward_cpu(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out) {
    dispatch_real(name, in.x.dtype(), [&]<class T>() {
      const T *x = in.x.data<T>(), cap = static_cast<T>(attrs.cap);
      T* y = out.y.data<T>();
      ctx.parallel_for(in.x.numel(), 1 << 14, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) y[i] = cap * std::tanh(x[i] / cap);
      });
    });
    return {out.y};
  }
  static void backward_cpu(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in) {
    dispatch_real(name, saved.y.dtype(), [&]<class T>() {
      const T *y = saved.y.data<T>(), *d_y = d_out.y.data<T>(), cap = static_cast<T>(attrs.cap);
      T* d_x = d_in.x.data<T>();
      ctx.parallel_for(saved.y.numel(), 1 << 14, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) d_x[i] = d_y[i] * (1 - (y[i] / cap) * (y[i] / cap));
      });
    });
  }
};

// 4. The contract, checked by the compiler.
static_assert(Differentiable<SoftCap>);

}  // namespace

// 5. The gradient, checked against central differences in float64.
int main() {
  Context ctx(0);
  std::vector<double> values(100);
  for (double& value : values) value = ctx.random.uniform(-3, 3);
  const GradcheckResult result = gradcheck<SoftCap>(ctx, {from_vector(ctx, values, {20, 5})}, {.cap = 2});
  std::printf("soft_cap: worst gradient error %.1e: %s\n", result.worst_error, result.passed ? "right" : result.message.c_str());
  const Tensor halves = converted(ctx, from_vector(ctx, values, {100}), DType::bf16);
  std::printf("soft_cap: in bf16 gives %s\n", std::string(to_string(apply<SoftCap>(ctx, {halves}, {}).y.dtype())).c_str());
  return result.passed ? 0 : 1;
}
