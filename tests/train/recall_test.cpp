#include "train/recall.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <set>

#include "tests/train/tiny_model.h"
#include "train/evaluate.h"

namespace braid::testing {
namespace {

TEST(AssociativeRecall, AnswersAreThePairs) {
  const AssociativeRecallOptions options{.num_pairs = 6, .num_keys = 9, .num_values = 5, .num_queries = 8, .gap = 3, .length = 40};
  const auto task = make_associative_recall(options, 3);
  EXPECT_EQ(task->vocab_size(), 15);
  for (uint64_t index = 0; index < 50; ++index) {
    const RecallExample example = task->example(Split::train, index);
    ASSERT_EQ(example.tokens.size(), 40u);
    std::map<int64_t, int64_t> value_of;
    for (int pair = 0; pair < 6; ++pair) value_of[example.tokens[2 * pair]] = example.tokens[2 * pair + 1];
    EXPECT_EQ(value_of.size(), 6u);
    for (int i = 12; i < 15; ++i) EXPECT_EQ(example.tokens[i], 14);
    int num_answers = 0;
    for (size_t i = 0; i < 40; ++i) {
      if (example.targets[i] < 0) continue;
      ++num_answers;
      EXPECT_GE(i, 15u);
      EXPECT_EQ(example.targets[i], value_of.at(example.tokens[i]));
      EXPECT_EQ(example.targets[i], example.tokens[i + 1]);
      EXPECT_TRUE(example.targets[i] >= 9 && example.targets[i] < 14);
    }
    EXPECT_EQ(num_answers, 8);
  }
}

TEST(AssociativeRecall, ReferencePointHas32TokensAnd8Answers) {
  Context ctx;
  const auto task = make_associative_recall({}, 1);
  const Batch batch = task->batch(ctx, Split::train, 100, 4);
  EXPECT_EQ(task->sequence_length(), 32);
  EXPECT_EQ(batch.sequences.cu_seqlens(), (std::vector<int64_t>{0, 32, 64, 96, 128}));
  EXPECT_EQ(batch.num_targets, 32);
  const RecallExample third = task->example(Split::train, 102);
  const auto tokens = to_vector<int64_t>(ctx, batch.tokens);
  EXPECT_EQ(std::vector<int64_t>(tokens.begin() + 64, tokens.begin() + 96), third.tokens);
}

TEST(AssociativeRecall, TrainAndTestShareNoSetOfPairs) {
  // Few enough contents (3 keys of 3, 3 values: 27) that chance alone would make the splits meet at once.
  const auto task = make_associative_recall({.num_pairs = 3, .num_keys = 3, .num_values = 3, .num_queries = 1}, 1);
  std::set<std::map<int64_t, int64_t>> seen[2];
  for (Split split : {Split::train, Split::test})
    for (uint64_t index = 0; index < 300; ++index) {
      const RecallExample example = task->example(split, index);
      std::map<int64_t, int64_t> pairs;
      for (int pair = 0; pair < 3; ++pair) pairs[example.tokens[2 * pair]] = example.tokens[2 * pair + 1];
      seen[static_cast<int>(split)].insert(pairs);
    }
  EXPECT_EQ(seen[0].size() + seen[1].size(), 27u);
  for (const auto& pairs : seen[1]) EXPECT_EQ(seen[0].count(pairs), 0u);
  EXPECT_GE(seen[1].size(), 1u);
}

TEST(Recall, ATaskTooSmallToSplitSaysSo) {
  int num_refusals = 0;
  for (uint64_t keys = 1; keys <= 4; ++keys) {
    const auto task = make_associative_recall({.num_pairs = 1, .num_keys = static_cast<int64_t>(keys), .num_values = 2, .num_queries = 1}, 1);
    for (Split split : {Split::train, Split::test}) num_refusals += error_of([&] { task->example(split, 0); }).empty() ? 0 : 1;
  }
  EXPECT_GE(num_refusals, 1);
}

TEST(Recall, GuessingIsAtChance) {
  Context ctx;
  const auto task = make_associative_recall({.num_pairs = 8, .num_keys = 16, .num_values = 4, .num_queries = 8}, 2);
  TinyModel model(ctx, task->vocab_size(), 4);
  Tensor head = model.parameter("head.weight").value;
  fill_zero(ctx, head);
  const RecallScore score = evaluate_recall(ctx, model.score(), *task, 200);
  EXPECT_EQ(score.num_examples, 200);
  EXPECT_EQ(score.num_answers, 1600);
  EXPECT_EQ(score.num_correct, 0);  // all logits equal: the smallest token, a key
  EXPECT_NEAR(score.loss(), std::log(21.0), 1e-5);
  // A model that always answers the first value is right as often as chance.
  const ScoreFunction stubborn = [&](Context& context, const Batch& batch, const LossOptions&) {
    const int64_t N = batch.sequences.num_tokens();
    return LossOutput{Tensor::zeros(context, {}, DType::f32), Tensor::zeros(context, {N}, DType::f32),
                      from_vector(context, std::vector<int64_t>(N, 16), {N})};
  };
  EXPECT_NEAR(evaluate_recall(ctx, stubborn, *task, 500, 64).accuracy(), task->chance(), 0.03);
}

TEST(Recall, IsAFunctionOfSeedSplitAndIndex) {
  const auto a = make_associative_recall({}, 1), b = make_associative_recall({}, 1), c = make_associative_recall({}, 2);
  EXPECT_EQ(a->example(Split::train, 7).tokens, b->example(Split::train, 7).tokens);
  EXPECT_NE(a->example(Split::train, 7).tokens, c->example(Split::train, 7).tokens);
  EXPECT_NE(a->example(Split::train, 7).tokens, a->example(Split::train, 8).tokens);
  EXPECT_NE(a->example(Split::train, 7).tokens, a->example(Split::test, 7).tokens);
}

TEST(CopyTask, TheSecondHalfIsTheAnswer) {
  const auto task = make_copy_task({.length = 5, .alphabet = 3}, 1);
  for (Split split : {Split::train, Split::test}) {
    const RecallExample example = task->example(split, 4);
    ASSERT_EQ(example.tokens.size(), 11u);
    for (int i = 0; i < 5; ++i) {
      EXPECT_EQ(example.targets[i], -1);
      EXPECT_EQ(example.targets[5 + i], example.tokens[i]);
      EXPECT_EQ(example.tokens[6 + i], example.tokens[i]);
    }
    EXPECT_EQ(example.targets[10], -1);
    EXPECT_EQ(RecallTask::split_of(example.content), split);
  }
}

TEST(NeedleTask, TheQuestionIsAnsweredInTheText) {
  const auto task = make_needle_task({.length = 300, .num_needles = 4, .num_digits = 5}, 1);
  for (uint64_t index = 0; index < 40; ++index) {
    const RecallExample example = task->example(index % 2 ? Split::test : Split::train, index);
    ASSERT_EQ(example.tokens.size(), 300u);
    const std::string text(example.tokens.begin(), example.tokens.end());
    const size_t question = text.rfind("the code of ");
    const std::string asked = text.substr(question);
    EXPECT_LT(text.find(asked), question) << text;
    for (int i = 0; i < 300; ++i) EXPECT_EQ(example.targets[i], i >= 294 && i < 299 ? example.tokens[i + 1] : -1);
    int num_needles = 0;
    for (size_t at = text.find("the code of "); at != std::string::npos; at = text.find("the code of ", at + 1)) ++num_needles;
    EXPECT_EQ(num_needles, 5);
  }
}

TEST(Recall, RefusesWhatCannotBeRight) {
  const auto with = [](const AssociativeRecallOptions& options) { return error_of([&] { make_associative_recall(options, 1); }); };
  EXPECT_EQ(with({.num_pairs = 0}), "recall: the number of pairs must be at least 1, got 0");
  EXPECT_EQ(with({.num_pairs = 17}), "recall: the number of keys must be at least that of pairs = 17, got 16");
  EXPECT_NE(with({.num_values = 1}), "");
  EXPECT_NE(with({.num_queries = 0}), "");
  EXPECT_NE(with({.gap = -1}), "");
  EXPECT_EQ(with({.length = 31}), "recall: the length (2 · pairs + gap + 2 · queries) must be at least 32, got 31");
  EXPECT_NE(error_of([] { make_copy_task({.length = 0}, 1); }), "");
  EXPECT_NE(error_of([] { make_copy_task({.length = 3, .alphabet = 27}, 1); }), "");
  EXPECT_NE(error_of([] { make_needle_task({.length = 40}, 1); }), "");
  EXPECT_NE(error_of([] { make_needle_task({.length = 400, .num_needles = 17}, 1); }), "");
  EXPECT_NE(error_of([] { make_needle_task({.length = 400, .num_needles = 1, .num_digits = 10}, 1); }), "");
}

TEST(RecallSource, RanksTogetherAreOneBatchAndPositionsAreRestored) {
  Context ctx;
  const auto task = make_associative_recall({}, 5);
  RecallSource whole(*task, 8), first(*task, 8, {0, 2, 2}), second(*task, 8, {1, 2, 2});
  whole.next(ctx);
  first.restore(whole.position());
  second.restore(whole.position());
  std::vector<int64_t> parts;
  for (RecallSource* source : {&first, &second}) {
    const StepBatch step = source->next(ctx);
    EXPECT_EQ(step.num_tokens, 256);
    EXPECT_EQ(step.num_targets, 64);
    for (const Batch& batch : step.micro_batches)
      for (int64_t token : to_vector<int64_t>(ctx, batch.tokens)) parts.push_back(token);
  }
  EXPECT_EQ(to_vector<int64_t>(ctx, whole.next(ctx).micro_batches[0].tokens), parts);
  const auto other = make_associative_recall({.num_values = 12}, 5);
  EXPECT_NE(error_of([&] { RecallSource(*other, 8).restore(whole.position()); }), "");
  EXPECT_NE(error_of([&] { RecallSource(*task, 9, {0, 2, 1}); }), "");
}

}  // namespace
}  // namespace braid::testing
