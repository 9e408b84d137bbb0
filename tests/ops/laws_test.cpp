// The laws' own measure: a wrong part of a tensor is seen, however small a part of it.
#include "ops/attention.h"
#include "ops/recurrence/gated_delta_rule.h"
#include "ops/recurrence/linear_recurrence.h"
#include "tests/support/cuda_laws.h"

namespace braid::testing {
namespace {

/// The error of the worst block of a tensor of ones in which one element is off by 1.
double error_of_one(const Shape& shape, int64_t at, BlockKind kind) {
  Context ctx(1);
  const Tensor expected = from_vector(ctx, std::vector<double>(shape.numel(), 1), shape), actual = copied(ctx, expected);
  actual.data<double>()[at] += 1;
  return worst_block_error(ctx, actual, expected, kind);
}

TEST(Laws, BlocksAreOfOneHead) {
  const BlockKind tokens = BlockKind::tokens, gate = BlockKind::gate;
  EXPECT_DOUBLE_EQ(error_of_one({640, 8, 4}, 999, tokens), std::sqrt(1.0 / (64 * 4)));
  EXPECT_DOUBLE_EQ(error_of_one({10, 8, 4, 16}, 999, tokens), std::sqrt(1.0 / (4 * 16))) << "a state: one sequence, one head";
  EXPECT_DOUBLE_EQ(error_of_one({640, 8}, 999, gate), std::sqrt(1.0 / 64));
  EXPECT_DOUBLE_EQ(error_of_one({640, 8}, 999, tokens), std::sqrt(1.0 / (64 * 8)));
}

TEST(Laws, GatesAreKnownByTheirNames) {
  EXPECT_EQ(kind_of_blocks<GatedDeltaRule::Inputs>("beta"), BlockKind::gate);
  EXPECT_EQ(kind_of_blocks<GatedDeltaRule::Inputs>("log_decay"), BlockKind::gate);
  EXPECT_EQ(kind_of_blocks<Attention::Outputs>("lse"), BlockKind::gate);
  EXPECT_EQ(kind_of_blocks<GatedDeltaRule::Inputs>("q"), BlockKind::tokens);
  EXPECT_EQ(kind_of_blocks<LinearRecurrence::Inputs>("log_decay"), BlockKind::tokens) << "[N, D]: there are no heads";
}

}  // namespace
}  // namespace braid::testing
