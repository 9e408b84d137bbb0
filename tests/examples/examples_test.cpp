// The programs in examples/ do what README.md says they do.
#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <fstream>
#include <string>

#include "io/model_directory.h"
#include "models/presets.h"

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

void expect_success(const char* program, const std::string& words, const std::string& arguments = "") {
  const Result result = run(std::string(BRAID_EXAMPLES_DIR) + "/braid_example_" + program + " " + arguments);
  EXPECT_EQ(result.status, 0) << result.output;
  EXPECT_NE(result.output.find(words), std::string::npos) << result.output;
}

TEST(Examples, EmbedTrainsAndReadsGradients) { expect_success("embed", "gradient of model.layers.0.attn.A_log"); }
TEST(Examples, EmbedSavesWhatItTrained) {
  const Path directory = std::filesystem::temp_directory_path() / ("braid-embed-" + std::to_string(::getpid()));
  expect_success("embed", "loss", directory.string());
  Context ctx;
  std::vector<std::string> notes;
  EXPECT_EQ(load_model_directory(ctx, directory, DType::f32, notes)->config(), preset("tiny-gdn-3-1"));
  remove_path(directory);
}
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
