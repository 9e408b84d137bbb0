// Ranks of MPI: the program mpi_ranks.cpp under mpirun.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>

#include "tests/support/mpirun.h"

namespace braid::test {
namespace {

#ifdef BRAID_MPI_RANKS
constexpr const char* kProgram = BRAID_MPI_RANKS;
#else
constexpr const char* kProgram = "";
#endif

ProgramResult ranks(int size, const std::string& scenario) { return mpirun(size, kProgram, {scenario}, Workspace()); }

void expect_right(int size) {
  const ProgramResult result = ranks(size, "right");
  EXPECT_EQ(result.status, 0) << result.err;
  EXPECT_EQ(result.out, std::to_string(size) + " ranks\n") << result.err;
}

TEST(Mpi, TwoRanks) {
  if (const std::string why = why_no_ranks(); !why.empty()) GTEST_SKIP() << why;
  expect_right(2);
}
TEST(Mpi, FourRanks) {
  if (const std::string why = why_no_ranks(); !why.empty()) GTEST_SKIP() << why;
  expect_right(4);
}
TEST(Mpi, OneRankWithoutMpirun) {
  if (const std::string why = why_no_ranks(); !why.empty()) GTEST_SKIP() << why;
  const ProgramResult result = run("/usr/bin/env", {"ASAN_OPTIONS=detect_leaks=0", kProgram, "right"}, Workspace());
  EXPECT_EQ(result.status, 0) << result.err;
  EXPECT_EQ(result.out, "1 ranks\n");
}

/// The job ends with an error, soon, and says one of `named`: the rank that ends first is heard, whether it waited itself or was told.
void expect_end(const std::string& scenario, const std::vector<std::string>& named) {
  const auto start = std::chrono::steady_clock::now();
  const ProgramResult result = ranks(3, scenario);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(60));
  EXPECT_NE(result.status, 0);
  const std::string said = result.out + result.err;
  const bool is_named = std::any_of(named.begin(), named.end(), [&](const std::string& name) { return said.find(name) != std::string::npos; });
  EXPECT_TRUE(is_named) << said;
}

TEST(Mpi, ARankThatStopsIsHeard) {
  if (const std::string why = why_no_ranks(); !why.empty()) GTEST_SKIP() << why;
  for (int i = 0; i < 3; ++i) expect_end("throws", {"a mistake of rank 1 alone"});
}
/// mpirun is told not to end the others when the first one exits.
TEST(Mpi, ARankThatStopsIsNamedByTheOthers) {
  if (const std::string why = why_no_ranks(); !why.empty()) GTEST_SKIP() << why;
  const ProgramResult result = mpirun(3, kProgram, {"throws"}, Workspace(), {"--mca", "orte_abort_on_non_zero_status", "0"});
  for (const char* said :
       {"a mistake of rank 1 alone", "rank 1 stopped with an error (this is rank 0 of 3)", "rank 1 stopped with an error (this is rank 2 of 3)"})
    EXPECT_NE(result.err.find(said), std::string::npos) << said << ": " << result.err;
}
TEST(Mpi, ARankThatHangsIsNamed) {
  if (const std::string why = why_no_ranks(); !why.empty()) GTEST_SKIP() << why;
  expect_end("hangs", {"all_reduce: rank 1 did not answer for 0.5 s", "all_reduce: rank 1 stopped with an error or did not answer, says rank"});
}
TEST(Mpi, ARankThatDiesEndsTheJob) {
  if (const std::string why = why_no_ranks(); !why.empty()) GTEST_SKIP() << why;
  expect_end("dies", {"signal 9"});
}
TEST(Mpi, AnotherSizeIsAnError) {
  if (const std::string why = why_no_ranks(); !why.empty()) GTEST_SKIP() << why;
  expect_end("size", {"must call it with a tensor of the same size"});
}
TEST(Mpi, AnotherOperationIsAnError) {
  if (const std::string why = why_no_ranks(); !why.empty()) GTEST_SKIP() << why;
  expect_end("differs", {"did not answer for 0.5 s", "stopped with an error or did not answer, says rank"});
}

}  // namespace
}  // namespace braid::test
