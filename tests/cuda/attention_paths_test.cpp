// The paths of attention that a newer GPU does not take by itself.
#include "cuda/kernels/attention/path.h"
#include "ops/attention.h"
#include "tests/support/neighbour_laws.h"

namespace braid::testing {
namespace {

using attention::Path;

struct Case {
  std::vector<int64_t> q_lengths, k_lengths;
  int64_t H, HK, D, window;
};

class AttentionPath : public ::testing::TestWithParam<Path> {};

TEST_P(AttentionPath, KeepsTheLawsOfKernels) {
  const attention::PathLimit limit(GetParam());
  const std::vector<Case> cases = {
      {{0, 1, 63, 64, 65, 300}, {0, 1, 63, 64, 65, 300}, 4, 2, 64, 0},
      {{129, 1, 0, 300}, {129, 1, 0, 300}, 2, 1, 128, 0},
      {{33, 150}, {33, 150}, 2, 1, 256, 0},
      {{300, 65}, {300, 65}, 2, 1, 64, 100},
      {{150, 1, 0}, {400, 129, 64}, 3, 3, 128, 90},
      {{1, 3}, {500, 60}, 4, 1, 128, 0},
  };
  for (const auto& [q_lengths, k_lengths, H, HK, D, window] : cases) {
    SCOPED_TRACE(::testing::Message() << "D " << D << ", window " << window << ", " << q_lengths.size() << " sequences");
    const Attention::Attrs attrs{.q_seqs = Sequences::of_lengths(q_lengths), .k_seqs = Sequences::of_lengths(k_lengths), .window = window};
    const auto inputs = [&, H = H, HK = HK, D = D](Context& ctx, Random& random) {
      const int64_t Nq = attrs.q_seqs.num_tokens(), Nk = attrs.k_seqs.num_tokens();
      return Attention::Inputs{normal(ctx, random, {Nq, H, D}), normal(ctx, random, {Nk, HK, D}), normal(ctx, random, {Nk, HK, D})};
    };
    const OpCase<Attention> op_case = {.name = "case", .inputs = inputs, .attrs = attrs};
    law_cuda(op_case, {}, DType::bf16);
    if (IsSkipped()) return;
    Context gpu = cuda::make_context();
    law_neighbours(gpu, op_case, {.token = {"q", "k", "v"}}, DType::bf16);
  }
}

/// Many blocks at work on one sequence: the same bits on every run, and those of each sequence alone.
TEST_P(AttentionPath, KeepsItsBits) {
  if (cuda::num_devices() == 0) GTEST_SKIP() << "no GPU";
  const attention::PathLimit limit(GetParam());
  Context host, gpu = cuda::make_context();
  for (const auto& [q_lengths, k_lengths, H, HK, D, window] : std::vector<Case>{{{3001, 77, 0, 1333}, {3001, 77, 0, 1333}, 16, 4, 128, 0},
                                                                                {{1999, 65}, {2500, 300}, 12, 12, 64, 0},
                                                                                {{2222, 901}, {2222, 1000}, 8, 4, 128, 700},
                                                                                {{2050, 640, 90}, {2051, 640, 170}, 16, 8, 64, 333}}) {
    SCOPED_TRACE(::testing::Message() << "D " << D << ", window " << window);
    const Attention::Attrs attrs{.q_seqs = Sequences::of_lengths(q_lengths), .k_seqs = Sequences::of_lengths(k_lengths), .window = window};
    const int64_t Nq = attrs.q_seqs.num_tokens(), Nk = attrs.k_seqs.num_tokens();
    Random random(5);
    const auto on_gpu = [&](const Shape& shape) { return copied(gpu, converted(host, normal(host, random, shape), DType::bf16)); };
    const Attention::Inputs in{on_gpu({Nq, H, D}), on_gpu({Nk, HK, D}), on_gpu({Nk, HK, D})};
    const Tensor d_o = on_gpu({Nq, H, D});
    const auto gradients_of = [](Context& ctx, const Attention::Inputs& inputs, const Attention::Attrs& of, const Tensor& gradient) {
      Tape tape;
      WithTape recording(ctx, &tape);
      const Attention::Inputs leaves{tape.leaf(inputs.q), tape.leaf(inputs.k), tape.leaf(inputs.v)};
      tape.backward(ctx, {apply<Attention>(ctx, leaves, of).o}, {gradient});
      return Attention::Inputs{tape.grad(leaves.q), tape.grad(leaves.k), tape.grad(leaves.v)};
    };
    const Attention::Inputs first = gradients_of(gpu, in, attrs, d_o);
    for (int again = 0; again < 5; ++again) expect_same_bits(gpu, gradients_of(gpu, in, attrs, d_o), first, "d_");
    for (int64_t s = 0; s < attrs.q_seqs.count(); ++s) {
      const Sequences &q_seqs = attrs.q_seqs, &k_seqs = attrs.k_seqs;
      const auto of_q = [&](const Tensor& tensor) { return contiguous(gpu, tensor.slice(0, q_seqs.begin(s), q_seqs.end(s))); };
      const auto of_k = [&](const Tensor& tensor) { return contiguous(gpu, tensor.slice(0, k_seqs.begin(s), k_seqs.end(s))); };
      const Attention::Attrs alone{.q_seqs = Sequences::single(q_seqs.length(s)), .k_seqs = Sequences::single(k_seqs.length(s)), .window = window};
      const Attention::Inputs d_alone = gradients_of(gpu, {of_q(in.q), of_k(in.k), of_k(in.v)}, alone, of_q(d_o));
      expect_same_bits<Attention::Inputs>(gpu, d_alone, {of_q(first.q), of_k(first.k), of_k(first.v)}, "alone d_");
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Paths, AttentionPath, ::testing::Values(Path::plain, Path::mma, Path::hopper), [](const auto& info) {
  return std::string(std::array{"plain", "mma", "hopper"}[static_cast<int>(info.param)]);
});

}  // namespace
}  // namespace braid::testing
