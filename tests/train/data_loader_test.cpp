#include "train/data_loader.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "io/token_dataset.h"
#include "tests/train/tiny_model.h"
#include "train/evaluate.h"

namespace braid::testing {
namespace {

const std::vector<int64_t> kLengths = {5, 1, 40, 16, 3, 0, 29, 7, 2, 64, 11};  // 178 tokens

std::shared_ptr<const TokenSource> numbers() { return make_token_source(numbered_documents(kLengths)); }

struct Flat {
  std::vector<int64_t> tokens, targets;
};
Flat flat(Context& ctx, DataLoader& loader, int64_t num_steps) {
  Flat all;
  for (int64_t i = 0; i < num_steps; ++i)
    for (const Batch& batch : loader.next(ctx).micro_batches) {
      for (int64_t token : to_vector<int64_t>(ctx, batch.tokens)) all.tokens.push_back(token);
      for (int64_t target : to_vector<int64_t>(ctx, batch.targets)) all.targets.push_back(target);
    }
  return all;
}

TEST(DataLoader, AnEpochHoldsEveryTokenOnce) {
  Context ctx;
  DataLoader loader({{numbers(), 1}}, {.batch_tokens = 48, .context = 16, .seed = 5, .shuffle = true, .share = {}});  // 12 rows: 4 steps
  for (int epoch = 0; epoch < 3; ++epoch) {
    std::vector<int64_t> tokens = flat(ctx, loader, 4).tokens;
    EXPECT_FALSE(std::is_sorted(tokens.begin(), tokens.end()));
    std::sort(tokens.begin(), tokens.end());
    std::vector<int64_t> want(178);
    std::iota(want.begin(), want.end(), 0);
    EXPECT_EQ(tokens, want);
  }
  EXPECT_DOUBLE_EQ(loader.epochs(0), 3);
}

TEST(DataLoader, SequencesKeepToDocumentsAndContextAndTargetsAreTheNextToken) {
  Context ctx;
  std::set<int64_t> last_tokens;
  int64_t end = 0;
  for (int64_t length : kLengths) last_tokens.insert((end += length) - 1);
  DataLoader loader({{numbers(), 1}}, {.batch_tokens = 32, .context = 16, .seed = 5, .shuffle = true, .share = {}});
  for (int step = 0; step < 6; ++step) {
    const StepBatch batch = loader.next(ctx);
    const Batch& only = batch.micro_batches.at(0);
    const auto tokens = to_vector<int64_t>(ctx, only.tokens), targets = to_vector<int64_t>(ctx, only.targets);
    EXPECT_LE(only.sequences.max_length(), 16);
    EXPECT_EQ(only.sequences.num_tokens(), batch.num_tokens);
    EXPECT_EQ(batch.num_targets, only.num_targets);
    int64_t num_targets = 0;
    for (size_t i = 0; i < tokens.size(); ++i) {
      EXPECT_EQ(targets[i], last_tokens.count(tokens[i]) ? -1 : tokens[i] + 1);
      num_targets += targets[i] >= 0;
    }
    EXPECT_EQ(num_targets, only.num_targets);
    for (int64_t s = 0; s < only.sequences.count(); ++s)
      for (int64_t i = only.sequences.begin(s); i + 1 < only.sequences.end(s); ++i) EXPECT_EQ(tokens[i] + 1, tokens[i + 1]);
  }
}

TEST(DataLoader, AnyPositionIsRestoredExactly) {
  Context ctx;
  const LoaderOptions options{.batch_tokens = 32, .context = 8, .seed = 9, .shuffle = true, .share = {}};
  const auto sources = [] { return std::vector<WeightedSource>{{numbers(), 2}, {make_token_source(numbered_documents({33, 4})), 1}}; };
  DataLoader whole(sources(), options);
  for (int step = 0; step < 12; ++step) {
    const DataPosition position = whole.position();
    const std::vector<int64_t> tokens = flat(ctx, whole, 1).tokens;
    DataLoader other(sources(), options);
    other.restore(position);
    EXPECT_EQ(other.position(), position);
    EXPECT_EQ(flat(ctx, other, 1).tokens, tokens) << step;
  }
  LoaderOptions changed = options;
  changed.seed = 10;
  DataLoader stranger(sources(), changed);
  EXPECT_NE(error_of([&] { stranger.restore(whole.position()); }), "");
}

TEST(DataLoader, RanksAndMicroBatchesTogetherAreTheSameBatch) {
  Context ctx;
  const auto all = [&](int num_ranks, int64_t num_micro_batches) {
    std::vector<DataLoader> loaders;
    for (int rank = 0; rank < num_ranks; ++rank) {
      const BatchShare share{rank, num_ranks, num_micro_batches};
      loaders.emplace_back(std::vector<WeightedSource>{{numbers(), 1}},
                           LoaderOptions{.batch_tokens = 64, .context = 8, .seed = 2, .shuffle = true, .share = share});
    }
    Flat result;
    for (int step = 0; step < 5; ++step)
      for (DataLoader& loader : loaders) {
        const Flat part = flat(ctx, loader, 1);
        result.tokens.insert(result.tokens.end(), part.tokens.begin(), part.tokens.end());
        result.targets.insert(result.targets.end(), part.targets.begin(), part.targets.end());
      }
    return std::pair(result.tokens, result.targets);
  };
  const auto one = all(1, 1);
  EXPECT_EQ(one, all(4, 1));
  EXPECT_EQ(one, all(1, 8));
  EXPECT_EQ(one, all(2, 2));
}

TEST(DataLoader, WeightsAreKept) {
  Context ctx;
  const std::vector<WeightedSource> sources = {
      {numbers(), 5}, {make_token_source({std::vector<int64_t>(50, 1000)}), 3}, {make_token_source({{2000, 2001}}), 2}};
  DataLoader loader(sources, {.batch_tokens = 80, .context = 8, .seed = 2, .shuffle = true, .share = {}});
  for (int step = 1; step <= 20; ++step) {
    loader.next(ctx);
    const std::vector<int64_t> drawn = loader.position().drawn;
    EXPECT_NEAR(drawn[0], 5 * step, 2);
    EXPECT_NEAR(drawn[1], 3 * step, 2);
    EXPECT_NEAR(drawn[2], 2 * step, 2);
  }
}

TEST(DataLoader, PermutationsArePermutations) {
  for (int64_t size : {1, 2, 3, 4, 5, 17, 64, 1000}) {
    std::vector<bool> seen(size);
    for (int64_t i = 0; i < size; ++i) {
      const int64_t to = permuted(i, size, 77);
      ASSERT_TRUE(to >= 0 && to < size && !seen[to]);
      seen[to] = true;
    }
  }
}

TEST(DataLoader, ReadsDataSetsFromFiles) {
  Context ctx;
  const TemporaryDirectory directory;
  const std::string path = directory.path() / "data.h5";
  TokenDatasetWriter writer(path, 200, "none");
  for (const auto& document : numbered_documents(kLengths)) writer.add_document(document);
  writer.close();
  const LoaderOptions options{.batch_tokens = 64, .context = 16, .seed = 4, .shuffle = true, .share = {}};
  DataLoader from_file({{open_token_source(path, 200), 1}}, options), from_memory({{numbers(), 1}}, options);
  const Flat a = flat(ctx, from_file, 7), b = flat(ctx, from_memory, 7);
  EXPECT_EQ(a.tokens, b.tokens);
  EXPECT_EQ(a.targets, b.targets);
  EXPECT_NE(error_of([&] { open_token_source(path, 199); }), "");
  EXPECT_NE(error_of([&] { open_token_source(path + "x"); }), "");
}

TEST(DataLoader, KnowsWhetherThereIsATarget) {
  EXPECT_FALSE(has_target(*make_token_source({{1}, {2}, {3}})));
  EXPECT_TRUE(has_target(*make_token_source({{1}, {2}, {3, 4}})));
  EXPECT_TRUE(has_target(*make_token_source({{1}, {2}, {3, 4}}), 3)) << "the third token is followed by another";
  EXPECT_FALSE(has_target(*make_token_source({{1}, {2}, {3, 4}}), 2));
}

TEST(DataLoader, RefusesWhatCannotBeRight) {
  const auto with = [](const LoaderOptions& options) { return error_of([&] { DataLoader({{numbers(), 1}}, options); }); };
  EXPECT_EQ(with({.batch_tokens = 30, .context = 16, .share = {}}), "data: batch tokens must be a multiple of context = 16, got 30");
  EXPECT_NE(with({.batch_tokens = 32, .context = 0, .share = {}}), "");
  EXPECT_NE(with({.batch_tokens = 48, .context = 16, .share = {0, 2, 1}}), "");
  EXPECT_NE(with({.batch_tokens = 32, .context = 16, .share = {2, 2, 1}}), "");
  EXPECT_NE(error_of([] { DataLoader({}, {.batch_tokens = 8, .context = 8, .share = {}}); }), "");
  EXPECT_NE(error_of([] { DataLoader({{numbers(), 0}}, {.batch_tokens = 8, .context = 8, .share = {}}); }), "");
  EXPECT_NE(error_of([] { DataLoader({{make_token_source({{}}), 1}}, {.batch_tokens = 8, .context = 8, .share = {}}); }), "");
}

TEST(Evaluate, TextLossDoesNotDependOnTheBatchAndIsThatOfUniformGuessing) {
  Context ctx;
  TinyModel model(ctx, 178, 8, DType::f64);
  const TextScore a = evaluate_text(ctx, model.score(), *numbers(), 16, 16), b = evaluate_text(ctx, model.score(), *numbers(), 16, 500);
  EXPECT_EQ(a.num_tokens, 178);
  EXPECT_EQ(a.num_targets, 178 - 10);
  EXPECT_NEAR(a.loss(), b.loss(), 1e-12);
  fill_zero(ctx, model.parameter("head.weight").value);
  const TextScore uniform = evaluate_text(ctx, model.score(), *numbers(), 16, 64, 100);
  EXPECT_EQ(uniform.num_tokens, 100);
  EXPECT_NEAR(uniform.perplexity(), 178, 1e-9);
  EXPECT_NEAR(uniform.bits_per_byte(2), std::log2(178.0) / 2, 1e-12);
}

}  // namespace
}  // namespace braid::testing
