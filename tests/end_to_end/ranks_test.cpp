// braid train under mpirun: data parallel. N ranks = 1 rank with the N shares in one batch.
#include <cmath>

#include "io/safetensors.h"
#include "tests/end_to_end/braid_program.h"
#include "tests/support/mpirun.h"

namespace braid::test {
namespace {

ProgramResult train(int num_ranks, const std::string& out, const Workspace& space, const Words& more = {}) {
  Words words = train_words(out, {"--batch-tokens", "256", "--threads", "1", "--save-every", "3"});
  words.erase(words.begin() + 9, words.begin() + 11);  // its own --batch-tokens
  words.insert(words.end(), more.begin(), more.end());
  return num_ranks == 1 ? braid_program(words, space) : mpirun(num_ranks, BRAID_PROGRAM, words, space);
}

std::vector<double> losses(const Workspace& space, const std::string& run) {
  std::vector<double> all;
  std::istringstream lines(space.read(run + "/metrics.jsonl"));
  for (std::string line; std::getline(lines, line);) all.push_back(parse_json(run, line)["loss"].get<double>());
  return all;
}

std::string model_of(const Workspace& space, const std::string& run) {
  expect_done(braid_program({"convert", "--from", run, "--to", run + "-model"}, space));
  return space.read(run + "-model/model.safetensors");
}

/// Largest difference of two models' values.
double difference(const Workspace& space, const std::string& a, const std::string& b) {
  Context ctx(1);
  const Safetensors left(space / (a + "-model/model.safetensors")), right(space / (b + "-model/model.safetensors"));
  double most = 0;
  for (const auto& entry : left.entries()) {
    const std::vector<double> x = to_vector<double>(ctx, left.get(entry.name)), y = to_vector<double>(ctx, right.get(entry.name));
    for (size_t i = 0; i < x.size(); ++i) most = std::max(most, std::abs(x[i] - y[i]));
  }
  return most;
}

TEST(Ranks, AreOneRankWithTheirBatchesTogether) {
  if (const std::string why = why_no_ranks(); !why.empty()) GTEST_SKIP() << why;
  const Workspace space;
  make_data(space);
  expect_done(train(1, "one", space));
  const ProgramResult result = train(2, "two", space);
  expect_done(result);
  EXPECT_NE(result.out.find("finished after step 6 of 6"), std::string::npos) << result.out;
  expect_done(train(2, "again", space));
  model_of(space, "one");
  EXPECT_EQ(model_of(space, "two"), model_of(space, "again")) << "the same bits in every run";
  // AdamW turns a gradient's last digit into up to a whole step where the gradient is nearly zero: losses are the law, values a check.
  EXPECT_LT(difference(space, "one", "two"), 1e-2);
  const std::vector<double> one = losses(space, "one"), two = losses(space, "two");
  ASSERT_EQ(one.size(), 6u);
  ASSERT_EQ(two.size(), 6u);
  for (size_t i = 0; i < 6; ++i) EXPECT_NEAR(one[i], two[i], 2e-5 * one[i]) << "step " << i + 1;
}

TEST(Ranks, ACheckpointOfTwoRanksIsResumedByOneOrTwo) {
  if (const std::string why = why_no_ranks(); !why.empty()) GTEST_SKIP() << why;
  const Workspace space;
  make_data(space);
  expect_done(train(2, "whole", space));
  const std::vector<double> want = losses(space, "whole");
  for (const int num_ranks : {1, 2}) {
    const std::string run = "by" + std::to_string(num_ranks);
    std::filesystem::copy(space / "whole", space / run, std::filesystem::copy_options::recursive);
    std::filesystem::remove_all(space / (run + "/checkpoints/step-00000006"));
    expect_done(train(num_ranks, run, space, {"--resume"}));
    const std::vector<double> got = losses(space, run);
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], want[i], 2e-5 * want[i]);
  }
  EXPECT_EQ(model_of(space, "by2"), model_of(space, "whole")) << "resumed = never stopped, bit for bit";
}

TEST(Ranks, AMistakeEndsAllRanks) {
  if (const std::string why = why_no_ranks(); !why.empty()) GTEST_SKIP() << why;
  const Workspace space;
  make_data(space);
  const ProgramResult result = train(3, "RUN", space);
  EXPECT_NE(result.status, 0);
  EXPECT_NE(result.err.find("--batch-tokens must be a multiple of context x micro-batches x ranks = 64 x 3, got 256"), std::string::npos)
      << result.err;
}

}  // namespace
}  // namespace braid::test
