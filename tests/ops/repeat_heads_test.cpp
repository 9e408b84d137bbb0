#include "ops/repeat_heads.h"

#include "tests/support/laws.h"
#include "tests/support/random_tensors.h"

namespace braid::testing {
namespace {

std::vector<OpCase<RepeatHeads>> cases() {
  std::vector<OpCase<RepeatHeads>> list;
  for (const int64_t groups : {1, 3}) {
    OpCase<RepeatHeads> c;
    c.name = "groups_" + std::to_string(groups);
    c.inputs = [](Context& ctx, Random& random) { return RepeatHeads::Inputs{normal(ctx, random, {5, 2, 4})}; };
    c.attrs = {groups};
    list.push_back(c);
  }
  return list;
}
const bool kLaws = register_laws<RepeatHeads>("RepeatHeads", cases());

TEST(RepeatHeads, GroupsShareAHead) {
  Context ctx(1);
  const Tensor x = from_vector<double>(ctx, {1, 2, 3, 4}, {1, 2, 2});
  EXPECT_EQ(to_vector<double>(ctx, apply<RepeatHeads>(ctx, {x}, {2}).y), (std::vector<double>{1, 2, 1, 2, 3, 4, 3, 4}));
  EXPECT_THROW(apply<RepeatHeads>(ctx, {x}, {0}), Error);
}

}  // namespace
}  // namespace braid::testing
