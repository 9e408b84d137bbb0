// Who asks for memory while operators run.
#include "core/owner.h"

#include <gtest/gtest.h>

#include "ops/linear.h"
#include "tests/support/error_of.h"
#include "tests/support/random_tensors.h"

namespace braid::testing {
namespace {

std::vector<std::string> owners;

/// y = x, writing down in whose name each of its functions would be given memory.
struct Witness {
  static constexpr std::string_view name = "witness";
  struct Inputs {
    Tensor x;
    static constexpr std::array<std::string_view, 1> names = {"x"};
  };
  struct Outputs {
    Tensor y;
    static constexpr std::array<std::string_view, 1> names = {"y"};
  };
  struct Saved {};
  struct Attrs {};
  static void note() { owners.push_back(std::string(current_owner()) + "; " + std::string(advice_on_memory(false))); }
  static Outputs allocate(Context&, const Inputs& in, const Attrs&) {
    note();
    return {in.x};
  }
  static Saved forward_cpu(Context&, const Inputs&, const Attrs&, Outputs&) {
    note();
    return {};
  }
  static void backward_cpu(Context&, const Saved&, const Attrs&, const Outputs& d_out, Inputs& d_in) {
    note();
    d_in.x = d_out.y;
  }
};

TEST(Owner, IsTheOperatorForwardsAndBackwards) {
  const std::string without = "witness; a shorter context or a smaller batch needs less";
  const std::string trained = "witness; fewer tokens per micro-batch or more recompute need less";
  Context ctx;
  const Tensor x = Tensor::zeros(ctx, {}, DType::f32);
  owners.clear();
  apply<Witness>(ctx, {x});
  EXPECT_EQ(owners, (std::vector<std::string>{without, without}));
  owners.clear();
  Tape tape;
  WithTape recording(ctx, &tape);
  tape.backward(ctx, apply<Witness>(ctx, {tape.leaf(x)}).y);
  EXPECT_EQ(owners, (std::vector<std::string>{trained, trained, trained}));
  EXPECT_EQ(current_owner(), "activations and scratch");
}

TEST(Owner, AnOperatorThatAsksForTooMuchIsNamed) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "the sanitizer ends a program that asks for too much";
#endif
  Context ctx;
  // No input has an element; the output has 2^56.
  const Tensor x = Tensor::empty(ctx, {int64_t{1} << 46, 0}, DType::f32), weight = Tensor::empty(ctx, {1 << 10, 0}, DType::f32);
  const std::string message = error_of([&] { linear(ctx, x, weight); });
  EXPECT_TRUE(message.starts_with("cpu: out of memory: linear asked for 288230376151711744 bytes; ")) << message;
  EXPECT_TRUE(message.ends_with("; a shorter context or a smaller batch needs less")) << message;
}

}  // namespace
}  // namespace braid::testing
