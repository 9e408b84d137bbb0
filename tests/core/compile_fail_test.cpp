// Programs that must not compile: tests/compile_fail/*.cpp, each with the words the compiler must say in a line "// expect: …".
#include <gtest/gtest.h>

#include <array>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>

namespace braid::testing {
namespace {

namespace fs = std::filesystem;

struct Compilation {
  int status;
  std::string output;
};

Compilation compile(const fs::path& file, const std::string& flags) {
  const std::string command =
      std::string(BRAID_CXX) + " -std=c++20 -fsyntax-only -I" + BRAID_SOURCE_DIR + " " + flags + " " + file.string() + " 2>&1";
  Compilation result;
  FILE* pipe = popen(command.c_str(), "r");
  std::array<char, 4096> buffer;
  while (const size_t count = fread(buffer.data(), 1, buffer.size(), pipe)) result.output.append(buffer.data(), count);
  result.status = pclose(pipe);
  return result;
}

std::string expected_words(const fs::path& path) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);)
    if (line.rfind("// expect: ", 0) == 0) return line.substr(11);
  return "";
}

TEST(CompileFail, EachProgramIsRefusedForItsReason) {
  int num_programs = 0;
  for (const auto& entry : fs::directory_iterator(fs::path(BRAID_SOURCE_DIR) / "tests/compile_fail")) {
    if (entry.path().extension() != ".cpp") continue;
    ++num_programs;
    const std::string words = expected_words(entry.path());
    ASSERT_NE(words, "") << entry.path() << " lacks its '// expect: ' line";
    const Compilation wrong = compile(entry.path(), "");
    EXPECT_NE(wrong.status, 0) << entry.path() << " compiles";
    EXPECT_NE(wrong.output.find(words), std::string::npos) << entry.path() << " fails for another reason:\n" << wrong.output;
    const Compilation right = compile(entry.path(), "-DRIGHT");
    EXPECT_EQ(right.status, 0) << entry.path() << " does not even compile when it is right:\n" << right.output;
  }
  EXPECT_GE(num_programs, 6);
}

}  // namespace
}  // namespace braid::testing
