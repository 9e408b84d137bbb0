#include "ops/repeat_heads.h"

#include "tests/support/laws.h"
<<<<<<< HEAD
#include "tests/support/random_tensors.h"
    == == ==
    =
>>>>>>> kern-light

        namespace braid::testing {
  namespace {

<<<<<<< HEAD
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
=======
  OpCase<RepeatHeads> repeat_case(const std::string& name, const Shape& shape, int64_t groups) {
    return {.name = name,
            .inputs = [=](Context& ctx, Random& random) -> RepeatHeads::Inputs { return {normal(ctx, random, shape)}; },
            .attrs = {.groups = groups},
            .gradcheck = shape.numel() < 1000};
  }
  const bool kLaws = register_laws<RepeatHeads>(
      "RepeatHeads", {repeat_case("two", {5, 2, 4}, 2), repeat_case("odd_width", {3, 3, 7}, 4), repeat_case("one_group", {4, 2, 3}, 1),
                      repeat_case("no_tokens", {0, 2, 4}, 2), repeat_case("large", {300, 4, 64}, 4)});

  TEST(RepeatHeads, WritesEveryHeadForItsGroup) {
    Context ctx;
    const Tensor x = from_vector<double>(ctx, {1, 2, 3, 4}, {1, 2, 2});
    EXPECT_EQ(to_vector<double>(ctx, apply<RepeatHeads>(ctx, {x}, {.groups = 2}).y), (std::vector<double>{1, 2, 1, 2, 3, 4, 3, 4}));
>>>>>>> kern-light
  }

  }  // namespace
}  // namespace braid::testing
