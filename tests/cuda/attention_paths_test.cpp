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

INSTANTIATE_TEST_SUITE_P(Paths, AttentionPath, ::testing::Values(Path::plain, Path::mma, Path::hopper), [](const auto& info) {
  return std::string(std::array{"plain", "mma", "hopper"}[static_cast<int>(info.param)]);
});

}  // namespace
}  // namespace braid::testing
