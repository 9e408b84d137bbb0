// Offsets past 2^31 elements (design: quality, law 8): a batch of equal sequences, more than 2^31 elements a tensor, must give every
// sequence what one sequence alone gets, the last as the first.
#include <gtest/gtest.h>

#include "cuda/runtime/runtime.h"
#include "ops/attention.h"
#include "ops/elementwise.h"
#include "ops/embedding.h"
#include "ops/gated_rms_norm.h"
#include "ops/gates.h"
#include "ops/l2_norm.h"
#include "ops/linear.h"
#include "ops/linear_cross_entropy.h"
#include "ops/recurrence/gated_delta_rule.h"
#include "ops/recurrence/gated_linear_attention.h"
#include "ops/recurrence/linear_recurrence.h"
#include "ops/repeat_heads.h"
#include "ops/rms_norm.h"
#include "ops/rotary.h"
#include "ops/short_conv.h"
#include "ops/swiglu.h"
#include "tests/support/op_case.h"

namespace braid::testing {
namespace {

constexpr int64_t kTokens = 2048, kWidth = 2048;
constexpr int64_t kRepeats = (int64_t{1} << 31) / (kTokens * kWidth) + 8;

Shape with_rows(Shape shape, int64_t rows) {
  shape.set(0, rows);
  return shape;
}

/// The block's rows, `repeats` times, on the device.
Tensor repeated(Context& gpu, const Tensor& block, int64_t repeats) {
  const Tensor source = copied(gpu, block);
  const int64_t rows = block.size(0);
  const Tensor all = Tensor::empty(gpu, with_rows(block.shape(), rows * repeats), block.dtype());
  for (int64_t i = 0; i < repeats; ++i) copy_into(gpu, all.slice(0, i * rows, (i + 1) * rows), source);
  return all;
}

Tensor block_of(Context& gpu, const Tensor& all, int64_t i) { return copied(gpu, all.slice(0, i * kTokens, (i + 1) * kTokens)); }

/// The first output and the gradients of inputs that have a row a token.
template <class Op>
std::vector<Tensor> run_repeated(Context& gpu, const typename Op::Inputs& block, const typename Op::Attrs& attrs,
                                 const std::vector<std::string_view>& shared, int64_t repeats) {
  Tape tape;
  WithTape recording(gpu, &tape);
  typename Op::Inputs in = block;
  const auto members = tensors_of(in);
  for (size_t i = 0; i < members.size(); ++i) {
    Tensor& member = *members[i];
    if (!member) continue;
    member = listed(shared, Op::Inputs::names[i]) ? copied(gpu, member) : repeated(gpu, member, repeats);
    if (is_floating(member.dtype())) member = tape.leaf(member);
  }
  typename Op::Outputs out = apply<Op>(gpu, in, attrs);
  const Tensor root = *tensors_of(out)[0];
  out = {};
  Context host;
  Random random(3);
  Tensor seed;
  if (root.rank() > 0) {
    const Tensor block_seed = uniform(host, random, with_rows(root.shape(), kTokens));
    seed = repeated(gpu, converted(host, block_seed, root.dtype()), repeats);
  }
  tape.backward(gpu, root, seed);
  std::vector<Tensor> results;
  if (root.rank() > 0) results.push_back(root.detached());
  for (size_t i = 0; i < members.size(); ++i)
    if (*members[i] && members[i]->grad_ref().tracked() && !listed(shared, Op::Inputs::names[i])) results.push_back(tape.grad(*members[i]));
  return results;
}

/// Floating members of `block` are rounded to `dtype`; where that is bf16, those in `wide` are in f32.
template <class Op, class Attrs>
void expect_blocks_alike(typename Op::Inputs block, Attrs&& attrs, const std::vector<std::string_view>& shared = {},
                         const std::vector<std::string_view>& wide = {}, DType dtype = DType::bf16) {
  if (cuda::num_devices() == 0) GTEST_SKIP() << "no GPU";
  if (cuda::facts(0).memory_bytes < (int64_t{76} << 30)) GTEST_SKIP() << "needs a GPU of 80 GB";
  Context host, gpu = cuda::make_context();
  block = in_dtype<Op>(host, block, dtype, {.accumulator = wide});
  const std::vector<Tensor> alone = run_repeated<Op>(gpu, block, attrs(1), shared, 1);
  const std::vector<Tensor> all = run_repeated<Op>(gpu, block, attrs(kRepeats), shared, kRepeats);
  ASSERT_EQ(alone.size(), all.size());
  int64_t largest = 0;
  for (size_t i = 0; i < all.size(); ++i) {
    largest = std::max(largest, all[i].numel());
    const Tensor first = block_of(gpu, all[i], 0);
    const auto on_host = [&](const Tensor& tensor) { return from_vector(host, to_vector<double>(gpu, tensor), first.shape()); };
    EXPECT_LE(relative_error(host, on_host(first), on_host(alone[i])), 1e-3);
    for (const int64_t at : {kRepeats / 2, kRepeats - 1}) EXPECT_TRUE(same_bits(gpu, block_of(gpu, all[i], at), first)) << i << " " << at;
  }
  EXPECT_GT(largest, int64_t{1} << 31);
}

Tensor values(const Shape& shape, double low = -1, double high = 1) {
  Context host;
  Random random(shape.numel() + static_cast<int64_t>(1000 * (high - low)));
  return uniform(host, random, shape, low, high);
}
Sequences sequences(int64_t repeats) { return Sequences::dense(repeats, kTokens); }
template <class Op>
auto no_attrs() {
  return [](int64_t) { return typename Op::Attrs{}; };
}
Tensor tokens_below(int64_t count) {
  Context host;
  std::vector<int64_t> tokens(kTokens);
  for (int64_t i = 0; i < kTokens; ++i) tokens[i] = i * 7 % count;
  return from_vector(host, tokens, {kTokens});
}

TEST(CudaLarge, Elementwise) {
  expect_blocks_alike<Silu>({values({kTokens, kWidth})}, no_attrs<Silu>());
  expect_blocks_alike<Add>({values({kTokens, kWidth}), values({kTokens, kWidth}, 0, 1)}, no_attrs<Add>());
  expect_blocks_alike<SwiGlu>({values({kTokens, kWidth}), values({kTokens, kWidth}, 0, 1)}, no_attrs<SwiGlu>());
}
TEST(CudaLarge, ElementwiseInFloat32) {
  expect_blocks_alike<Silu>({values({kTokens, kWidth})}, no_attrs<Silu>(), {}, {}, DType::f32);
  expect_blocks_alike<Add>({values({kTokens, kWidth}), values({kTokens, kWidth}, 0, 1)}, no_attrs<Add>(), {}, {}, DType::f32);
}
TEST(CudaLarge, Norms) {
  const Tensor x = values({kTokens, kWidth}), y = values({kTokens, kWidth}, 0, 1), weight = values({kWidth}), heads = values({kTokens, 16, 128});
  expect_blocks_alike<RmsNorm>({x, weight, y}, no_attrs<RmsNorm>(), {"weight"}, {"weight"});
  expect_blocks_alike<GatedRmsNorm>({heads, heads, values({128})}, no_attrs<GatedRmsNorm>(), {"weight"}, {"weight"});
  expect_blocks_alike<L2Norm>({heads}, no_attrs<L2Norm>());
}
TEST(CudaLarge, ConvolutionAndRotary) {
  expect_blocks_alike<ShortConv>({values({kTokens, kWidth}), values({kWidth, 4}), {}},
                                 [](int64_t n) {
                                   return ShortConv::Attrs{sequences(n), ConvActivation::silu};
                                 },
                                 {"weight"}, {"weight"});
  expect_blocks_alike<Rotary>({values({kTokens, 16, 128})}, [](int64_t n) { return Rotary::Attrs{.seqs = sequences(n)}; });
  expect_blocks_alike<RepeatHeads>({values({kTokens, 8, 128})}, [](int64_t) { return RepeatHeads::Attrs{.groups = 2}; });
}
TEST(CudaLarge, Gates) {
  expect_blocks_alike<HgrnGate>({values({kTokens, kWidth}), values({kWidth}, 0, 1)}, no_attrs<HgrnGate>(), {"lower_bound"}, {"lower_bound"});
  expect_blocks_alike<GlaGate>({values({kTokens, kWidth})}, no_attrs<GlaGate>());
}
TEST(CudaLarge, Products) {
  expect_blocks_alike<Linear>({values({kTokens, kWidth}), values({64, kWidth}), values({64})}, no_attrs<Linear>(), {"weight", "bias"});
  expect_blocks_alike<Embedding>({tokens_below(100), values({100, kWidth})}, no_attrs<Embedding>(), {"weight"});
  expect_blocks_alike<LinearCrossEntropy>({values({kTokens, kWidth}), values({256, kWidth}), tokens_below(256)},
                                          [](int64_t) { return LinearCrossEntropy::Attrs{.denominator = 1000}; }, {"weight"});
}
TEST(CudaLarge, LinearRecurrence) {
  expect_blocks_alike<LinearRecurrence>({values({kTokens, kWidth}), values({kTokens, kWidth}, -1, 0), {}},
                                        [](int64_t n) { return LinearRecurrence::Attrs{.seqs = sequences(n)}; });
}
/// Six tensors of the size of x at once, 53 GB.
TEST(CudaLarge, LinearRecurrenceInFloat32) {
  const auto attrs = [](int64_t n) { return LinearRecurrence::Attrs{.seqs = sequences(n)}; };
  expect_blocks_alike<LinearRecurrence>({values({kTokens, kWidth}), values({kTokens, kWidth}, -1, 0), {}}, attrs, {}, {}, DType::f32);
}
TEST(CudaLarge, GatedLinearAttention) {
  const Tensor q = values({kTokens, 16, 128}), k = values({kTokens, 16, 128}, -0.5, 0.5), v = values({kTokens, 16, 128}, 0, 1);
  const auto attrs = [](int64_t n) { return GatedLinearAttention::Attrs{.seqs = sequences(n), .scale = 0.1}; };
  expect_blocks_alike<GatedLinearAttention>({q, k, v, values({kTokens, 16}, -1, 0), {}}, attrs, {}, {"log_decay"});
  expect_blocks_alike<GatedLinearAttention>({q, k, v, values({kTokens, 16, 128}, -1, 0), {}}, attrs);
}
TEST(CudaLarge, GatedDeltaRule) {
  const Tensor q = values({kTokens, 8, 64}), k = values({kTokens, 8, 64}, -0.1, 0.1), v = values({kTokens, 32, 64}, 0, 1);
  const auto attrs = [](int64_t n) { return GatedDeltaRule::Attrs{.seqs = sequences(n), .scale = 0.1, .qk_l2norm = true}; };
  expect_blocks_alike<GatedDeltaRule>({q, k, v, values({kTokens, 32}, 0, 1), values({kTokens, 32}, -1, 0), {}}, attrs, {}, {"beta", "log_decay"});
}
TEST(CudaLarge, GatedDeltaRulePerChannel) {
  const Tensor q = values({kTokens, 2, 256}), k = values({kTokens, 2, 256}, -0.1, 0.1), v = values({kTokens, 8, 64}, 0, 1);
  const auto attrs = [](int64_t n) { return GatedDeltaRule::Attrs{.seqs = sequences(n), .scale = 0.1, .qk_l2norm = true}; };
  expect_blocks_alike<GatedDeltaRule>({q, k, v, values({kTokens, 8}, 0, 1), values({kTokens, 8, 256}, -1, 0), {}}, attrs, {}, {"beta"});
}
void expect_attention_alike(int64_t D, int64_t window) {
  SCOPED_TRACE(::testing::Message() << "heads of " << D << ", window " << window);
  const int64_t H = kWidth / D;
  const Tensor q = values({kTokens, H, D}), k = values({kTokens, H / 4, D}, -0.5, 0.5), v = values({kTokens, H / 4, D}, 0, 1);
  expect_blocks_alike<Attention>({q, k, v}, [=](int64_t n) { return Attention::Attrs{.q_seqs = sequences(n), .window = window}; });
}
TEST(CudaLarge, Attention) { expect_attention_alike(128, 0); }
TEST(CudaLarge, AttentionOfOtherHeads) {
  for (const int64_t D : {64, 256}) expect_attention_alike(D, 0);
}
TEST(CudaLarge, AttentionWithAWindow) {
  for (const int64_t D : {64, 128}) expect_attention_alike(D, 300);
}

}  // namespace
}  // namespace braid::testing
