// What `braid bench` says of an operator: times beside floors that follow from its counts.
#include "tests/end_to_end/braid_program.h"

namespace braid::test {
namespace {

TEST(Bench, TellsTimesCountsFloorsAndMemory) {
  const Workspace space;
  const ProgramResult result = braid_program({"bench", "--op", "rms_norm", "linear", "--budget-ms", "1", "--json", "b.json"}, space);
  expect_done(result);
  for (const char* column : {"forward ms", "fwd+bwd ms", "x floor", "MB", "GFLOP", "extra MB", "tokens/s"})
    EXPECT_NE(result.out.find(column), std::string::npos) << column;
  const Json json = read_json(space / "b.json");
  const double flops_per_s = json["ceilings"]["gemm_flops_per_s"], bytes_per_s = json["ceilings"]["copy_bytes_per_s"];
  ASSERT_EQ(json["operators"].size(), 2u);
  for (const Json& row : json["operators"]) {
    SCOPED_TRACE(row.dump());
    const double floor = row["forward_backward_floor_ms"];
    EXPECT_GE(floor, 0.999 * 1e3 * row["flops"].get<double>() / flops_per_s);
    EXPECT_GE(floor, 0.999 * 1e3 * row["bytes"].get<double>() / bytes_per_s);
    EXPECT_NEAR(row["forward_backward_x_floor"].get<double>(), row["forward_backward_ms"].get<double>() / floor, 1e-9);
    EXPECT_NEAR(row["forward_x_floor"].get<double>(), row["forward_ms"].get<double>() / row["forward_floor_ms"].get<double>(), 1e-9);
    EXPECT_GE(row["extra_bytes"].get<int64_t>(), 0);
  }
  const Json& linear = json["operators"][0];
  EXPECT_EQ(linear["op"], "linear");
  EXPECT_EQ(linear["flops"], 3 * 2.0 * 2048 * 512 * 512);
  constexpr double kRows = 4.0 * 2048 * 512, kWeight = 4.0 * 512 * 512;
  EXPECT_EQ(linear["bytes"], (2 * kRows + kWeight) + (3 * kRows + 2 * kWeight)) << "x, o, weight; then x, d_o, d_x, weight, d_weight";
  EXPECT_EQ(json["operators"][1]["op"], "rms_norm");
  EXPECT_GE(json["operators"][1]["extra_bytes"], 4 * 2048) << "a norm a row is kept for backward";
}

TEST(Bench, TellsWhereATrainingStepsTimeGoes) {
  const Workspace space;
  expect_done(braid_program({"bench", "--model", "tiny-gdn-3-1", "--batch-tokens", "128", "--context", "64", "--json", "b.json"}, space));
  const Json step = read_json(space / "b.json")["step"];
  EXPECT_EQ(step["model"], "tiny-gdn-3-1");
  double share = 0;
  for (const Json& part : step["parts"]) share += part["share"].get<double>();
  EXPECT_NEAR(share, 1, 1e-6);
}

}  // namespace
}  // namespace braid::test
