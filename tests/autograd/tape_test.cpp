#include "autograd/tape.h"

#include <gtest/gtest.h>

#include "autograd/gradcheck.h"
#include "autograd/recompute.h"
#include "ops/rms_norm.h"
#include "tests/support/random_tensors.h"

namespace braid::testing {
namespace {

/// y = a · b elementwise, written here to test the tape with something small. `broken` scales its gradient of a.
template <bool broken>
struct Product {
  static constexpr std::string_view name = "product";
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
  struct Attrs {};
  static Outputs allocate(Context& ctx, const Inputs& in, const Attrs&) { return {Tensor::empty(ctx, in.a.shape(), in.a.dtype())}; }
  static Saved forward_cpu(Context&, const Inputs& in, const Attrs&, Outputs& out) {
    multiply(in.a, in.b, out.y, 1);
    return {in.a, in.b};
  }
  static void backward_cpu(Context&, const Saved& saved, const Attrs&, const Outputs& d_out, Inputs& d_in) {
    if (d_in.a) multiply(d_out.y, saved.b, d_in.a, broken ? 1.01 : 1);
    if (d_in.b) multiply(d_out.y, saved.a, d_in.b, 1);
  }
  static void multiply(const Tensor& a, const Tensor& b, const Tensor& y, double scale) {
    for (int64_t i = 0; i < y.numel(); ++i) y.data<double>()[i] = scale * a.data<double>()[i] * b.data<double>()[i];
  }
};
using Times = Product<false>;

Tensor scalar(Context& ctx, double value) { return from_vector<double>(ctx, {value}, {}); }

TEST(Tape, AValueUsedTwiceGathersBothGradients) {
  Context ctx;
  Tape tape;
  WithTape recording(ctx, &tape);
  const Tensor x = tape.leaf(scalar(ctx, 3));
  const Tensor square = apply<Times>(ctx, {x, x}).y;
  const Tensor cube = apply<Times>(ctx, {square, x}).y;
  tape.backward(ctx, cube);
  EXPECT_DOUBLE_EQ(item(ctx, tape.grad(x)), 27);
}

TEST(Tape, ALeafAddsIntoItsBufferAndKeysGiveTheSameLeaf) {
  Context ctx;
  Tape tape;
  WithTape recording(ctx, &tape);
  const Tensor buffer = scalar(ctx, 100), value = scalar(ctx, 2);
  const int key = 0;
  const Tensor first = tape.leaf(value, buffer, &key), second = tape.leaf(value, buffer, &key);
  EXPECT_EQ(first.grad_ref().slot, second.grad_ref().slot);
  tape.backward(ctx, apply<Times>(ctx, {first, second}).y);
  EXPECT_DOUBLE_EQ(item(ctx, buffer), 104);
}

TEST(Tape, RecordsOnlyWhatDependsOnALeaf) {
  Context ctx;
  Tape tape;
  WithTape recording(ctx, &tape);
  apply<Times>(ctx, {scalar(ctx, 1), scalar(ctx, 2)});
  EXPECT_EQ(tape.num_nodes(), 0);
  const Tensor x = tape.leaf(scalar(ctx, 1));
  apply<Times>(ctx, {x, scalar(ctx, 2)});
  apply<Times>(ctx, {x.detached(), scalar(ctx, 2)});
  EXPECT_EQ(tape.num_nodes(), 1);
}

TEST(Tape, AViewKeepsTheGradient) {
  Context ctx;
  Random random(1);
  Tape tape;
  WithTape recording(ctx, &tape);
  const Tensor x = tape.leaf(uniform(ctx, random, {2, 3}));
  const Tensor y = apply<Times>(ctx, {x.view({3, 2}), x.view({3, 2})}).y;
  const Tensor seed = uniform(ctx, random, {6});
  tape.backward(ctx, y.view({6}), seed);
  EXPECT_EQ(tape.grad(x).shape(), (Shape{2, 3}));
  EXPECT_DOUBLE_EQ(to_vector<double>(ctx, tape.grad(x))[4], 2 * to_vector<double>(ctx, x)[4] * to_vector<double>(ctx, seed)[4]);
}

TEST(Tape, ASharedGradientIsNotAddedInto) {
  Context ctx;
  Tape tape;
  WithTape recording(ctx, &tape);
  const Tensor x = tape.leaf(scalar(ctx, 1));
  const Tensor seed = scalar(ctx, 5);
  const Tensor y = apply<Times>(ctx, {x, scalar(ctx, 1)}).y;
  tape.backward(ctx, {y, y}, {seed, seed});
  EXPECT_DOUBLE_EQ(item(ctx, seed), 5);
  EXPECT_DOUBLE_EQ(item(ctx, tape.grad(x)), 10);
}

TEST(Tape, ListsSavedBytesByOperator) {
  Context ctx;
  Random random(1);
  Tape tape;
  WithTape recording(ctx, &tape);
  const Tensor x = tape.leaf(uniform(ctx, random, {10}));
  apply<Times>(ctx, {x, x});
  const std::vector<SavedBytes> saved = tape.saved_bytes();
  ASSERT_EQ(saved.size(), 1u);
  EXPECT_EQ(saved[0].op, "product");
  EXPECT_EQ(saved[0].bytes, 80);
}

TEST(Tape, RefusesATensorOfAnotherTape) {
  Context ctx;
  Tape first, second;
  const Tensor x = first.leaf(scalar(ctx, 1));
  WithTape recording(ctx, &second);
  EXPECT_THROW(apply<Times>(ctx, {x, x}), Error);
}

TEST(Gradcheck, PassesARightBackwardAndNamesAWrongOne) {
  Context ctx;
  Random random(2);
  const Tensor a = uniform(ctx, random, {3, 4}), b = uniform(ctx, random, {3, 4});
  EXPECT_TRUE(gradcheck<Times>(ctx, {a, b}, {}).passed);
  const GradcheckResult wrong = gradcheck<Product<true>>(ctx, {a, b}, {});
  EXPECT_FALSE(wrong.passed);
  EXPECT_NE(wrong.message.find("product: d_a"), std::string::npos) << wrong.message;
}

struct NormTwice {
  Tensor weight;
  std::vector<Tensor> operator()(Context& ctx, const std::vector<Tensor>& in) const {
    const Tensor once = apply<RmsNorm>(ctx, {in[0], weight, {}}).y;
    const auto twice = apply<RmsNorm>(ctx, {once, weight, in[0]});
    return {twice.y, twice.sum, once};
  }
};

TEST(Recompute, GivesTheSameBitsAndKeepsLess) {
  Context ctx;
  Random random(2);
  const Tensor x = uniform(ctx, random, {50, 16}), seed = uniform(ctx, random, {50, 16});
  const NormTwice block{uniform(ctx, random, {16})};
  const auto run = [&](bool again, int64_t* kept) {
    Tape tape;
    WithTape recording(ctx, &tape);
    const Tensor leaf = tape.leaf(x);
    std::vector<Tensor> y = again ? recompute(ctx, block, {leaf}) : block(ctx, {leaf});
    y.pop_back();  // an output that nothing follows has no gradient
    *kept = 0;
    for (const SavedBytes& saved : tape.saved_bytes()) *kept += saved.bytes;
    tape.backward(ctx, y, {seed, seed});
    return std::pair(y[0].detached(), tape.grad(leaf));
  };
  int64_t kept_all = 0, kept_inputs = 0;
  const auto plain = run(false, &kept_all), again = run(true, &kept_inputs);
  EXPECT_TRUE(same_bits(ctx, plain.first, again.first));
  EXPECT_TRUE(same_bits(ctx, plain.second, again.second));
  EXPECT_LT(kept_inputs, kept_all);
}

}  // namespace
}  // namespace braid::testing
