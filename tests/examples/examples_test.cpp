// The programs in examples/ do what README.md says they do.
#include <gtest/gtest.h>

#include <array>
#include <cstdio>
#include <fstream>
#include <string>

namespace braid::testing {
namespace {

struct Result {
  int status;
  std::string output;
};

Result run(const std::string& command) {
  Result result{0, ""};
  FILE* pipe = popen((command + " 2>&1").c_str(), "r");
  std::array<char, 4096> buffer;
  while (const size_t count = fread(buffer.data(), 1, buffer.size(), pipe)) result.output.append(buffer.data(), count);
  result.status = pclose(pipe);
  return result;
}

void expect_success(const char* program, const std::string& words) {
  const Result result = run(std::string(BRAID_EXAMPLES_DIR) + "/braid_example_" + program);
  EXPECT_EQ(result.status, 0) << result.output;
  EXPECT_NE(result.output.find(words), std::string::npos) << result.output;
}

TEST(Examples, EmbedTrainsAndReadsGradients) { expect_success("embed", "gradient of model.layers.0.attn.A_log"); }
TEST(Examples, AnOperatorFromOutsideIsRight) { expect_success("add_operator", "right"); }
TEST(Examples, AMixerFromOutsideStepsAsItTrains) { expect_success("add_mixer", "one-token steps differ by"); }

TEST(Examples, EmbedIsShortAndUsesPublicHeadersOnly) {
  std::ifstream file(std::string(BRAID_SOURCE_DIR) + "/examples/embed.cpp");
  int num_lines = 0;
  for (std::string line; std::getline(file, line); ++num_lines) EXPECT_EQ(line.find(".cpp\""), std::string::npos) << line;
  EXPECT_GT(num_lines, 20);
  EXPECT_LE(num_lines, 60);
}

}  // namespace
}  // namespace braid::testing
