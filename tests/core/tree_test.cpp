// The house rules a program can check: include arrows, sizes of files and functions (design: architecture, style).
#include <gtest/gtest.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <string>
#include <vector>

namespace braid::testing {
namespace {

namespace fs = std::filesystem;

const fs::path kRoot = BRAID_SOURCE_DIR;

struct Source {
  std::string path;  // relative, with forward slashes
  std::vector<std::string> lines;
  std::string extension() const { return fs::path(path).extension().string(); }
  std::string room() const { return path.substr(0, path.find('/')); }
  bool starts_with(const std::string& prefix) const { return path.rfind(prefix, 0) == 0; }
};

std::vector<Source> all_sources() {
  std::vector<Source> sources;
  for (const char* room : {"core", "autograd", "ops", "cuda", "models", "io", "train", "tests", "examples"}) {
    if (!fs::exists(kRoot / room)) continue;
    for (const auto& entry : fs::recursive_directory_iterator(kRoot / room)) {
      const std::string extension = entry.path().extension().string();
      if (extension != ".h" && extension != ".cpp" && extension != ".cu" && extension != ".cuh") continue;
      Source source{fs::relative(entry.path(), kRoot).generic_string(), {}};
      std::ifstream file(entry.path());
      for (std::string line; std::getline(file, line);) source.lines.push_back(line);
      sources.push_back(std::move(source));
    }
  }
  return sources;
}

/// Which rooms a room may include, besides itself.
const std::map<std::string, std::set<std::string>> kArrows = {
    {"core", {}},
    {"autograd", {"core"}},
    {"ops", {"autograd", "core"}},
    {"cuda", {"ops", "autograd", "core"}},
    {"models", {"ops", "autograd", "core"}},
    {"io", {"core", "models"}},  // models in checkpoints and model directories only: see below
    {"train", {"core", "autograd", "ops", "cuda", "models", "io"}},
};

std::string arrow_violation(const Source& source, const std::string& included) {
  static const std::regex cuda_header(R"((cuda.*|cublas.*|nccl.*|nvtx.*|cooperative_groups.*|cub/.*|mma\.h))");
  const std::string room = included.substr(0, included.find('/'));
  const bool is_ours = kArrows.count(room) && included.find('/') != std::string::npos;
  if (source.starts_with("cuda/device/"))
    return is_ours && included.rfind("cuda/device/", 0) != 0 ? "cuda/device includes nothing outside itself" : "";
  if (!is_ours) {
    const bool outside = source.room() != "cuda" && !source.starts_with("tests/cuda/") && !source.starts_with("tests/bench/");
    return outside && std::regex_match(included, cuda_header) ? "a CUDA header outside cuda/" : "";
  }
  const auto arrows = kArrows.find(source.room());
  if (arrows == kArrows.end() || room == source.room()) return "";  // tests and examples may include everything
  if (!arrows->second.count(room)) return source.room() + " must not include " + room;
  const bool model_file = source.path.find("checkpoint") != std::string::npos || source.path.find("model_directory") != std::string::npos;
  if (source.room() == "io" && room == "models" && !model_file) return "io includes models in checkpoints and model directories only";
  return "";
}

TEST(Tree, IncludesFollowTheArrows) {
  static const std::regex include(R"re(^\s*#\s*include\s*["<]([^">]+)[">].*)re");
  int num_includes = 0;
  for (const Source& source : all_sources()) {
    for (const std::string& line : source.lines) {
      std::smatch match;
      if (!std::regex_match(line, match, include)) continue;
      ++num_includes;
      const std::string violation = arrow_violation(source, match[1]);
      EXPECT_EQ(violation, "") << source.path << ": " << line;
    }
  }
  EXPECT_GT(num_includes, 100);
}

TEST(Tree, TheArrowCheckCanFail) {
  EXPECT_NE(arrow_violation({"core/x.h", {}}, "ops/rms_norm.h"), "");
  EXPECT_NE(arrow_violation({"autograd/x.h", {}}, "models/module.h"), "");
  EXPECT_NE(arrow_violation({"ops/x.h", {}}, "cuda_runtime.h"), "");
  EXPECT_NE(arrow_violation({"io/tokenizer.h", {}}, "models/config.h"), "");
  EXPECT_EQ(arrow_violation({"io/checkpoint.h", {}}, "models/config.h"), "");
  EXPECT_EQ(arrow_violation({"train/trainer.h", {}}, "io/checkpoint.h"), "");
}

TEST(Tree, FilesKeepTheirBudgets) {
  for (const Source& source : all_sources()) {
    const bool device_code = source.extension() == ".cu" || source.extension() == ".cuh";
    const size_t budget = device_code ? 600 : source.extension() == ".h" ? 200 : 400;
    EXPECT_LE(source.lines.size(), budget) << source.path;
    for (size_t i = 0; i < source.lines.size(); ++i) {
      EXPECT_LE(source.lines[i].size(), 160u) << source.path << ":" << i + 1;  // bytes; 150 columns
    }
  }
}

TEST(Tree, MacrosAreTheTwoOfTheRules) {
  static const std::regex define(R"(^\s*#\s*define\s+(\w+).*)");
  const std::set<std::string> allowed = {"BRAID_CHECK", "BRAID_HOST_DEVICE", "OMPI_SKIP_MPICXX"};  // the last one is MPI's own switch
  int num_macros = 0;
  for (const Source& source : all_sources()) {
    for (const std::string& line : source.lines) {
      std::smatch match;
      if (!std::regex_match(line, match, define)) continue;
      ++num_macros;
      EXPECT_TRUE(allowed.count(match[1])) << source.path << ": " << line;
    }
  }
  EXPECT_GE(num_macros, 3);
}

/// The text without comments, string and character literals, line breaks kept.
std::string bare_code(const Source& source) {
  std::string text, bare;
  for (const std::string& line : source.lines) text += (line.rfind('#', 0) == 0 ? "" : line) + '\n';
  for (size_t i = 0; i < text.size(); ++i) {
    if (text.compare(i, 2, "//") == 0) {
      while (text[i] != '\n') ++i;
    } else if (text.compare(i, 2, "/*") == 0) {
      for (i += 2; i < text.size() && text.compare(i, 2, "*/") != 0; ++i)
        if (text[i] == '\n') bare += '\n';
      ++i;
      continue;
    } else if (text[i] == '"' && i >= 1 && text[i - 1] == 'R') {
      const std::string end = ")" + text.substr(i + 1, text.find('(', i) - i - 1) + "\"";
      const size_t stop = text.find(end, i);
      for (; i < stop + end.size() - 1; ++i)
        if (text[i] == '\n') bare += '\n';
      continue;
    } else if (text[i] == '"' || (text[i] == '\'' && !(i && std::isalnum(static_cast<unsigned char>(text[i - 1]))))) {
      const char quote = text[i++];
      while (i < text.size() && text[i] != quote) i += text[i] == '\\' ? 2 : 1;
      bare += quote;
    }
    bare += text[i];
  }
  return bare;
}

struct Function {
  std::string head;
  int first_line, num_lines;
};

/// Outermost function bodies: a brace behind a parenthesised head that is not a type, a namespace or an initialiser.
std::vector<Function> functions_of(const Source& source) {
  static const std::regex not_a_function(
      R"(^\s*(namespace|struct|class|enum|union|extern|template\s*<[^{}]*>\s*(struct|class))\b[\s\S]*|[\s\S]*=\s*$)");
  const std::string code = bare_code(source);
  std::vector<Function> functions;
  std::string head;
  int line = 1, depth = 0, function_depth = -1;
  for (char c : code) {
    if (c == '\n') ++line;
    if (c == '{') {
      if (function_depth < 0 && head.find('(') != std::string::npos && !std::regex_match(head, not_a_function)) {
        function_depth = depth;
        functions.push_back({head, line, 0});
      }
      ++depth;
    }
    if (c == '}') {
      --depth;
      if (depth == function_depth) {
        functions.back().num_lines = line - functions.back().first_line + 1;
        function_depth = -1;
      }
    }
    if (c == ';' || c == '{' || c == '}') head.clear();
    else head += c;
  }
  return functions;
}

bool runs_on_device(const Function& function) {
  return function.head.find("__global__") != std::string::npos || function.head.find("__device__") != std::string::npos;
}

TEST(Tree, HostFunctionsKeepTheirBudget) {
  int num_functions = 0;
  for (const Source& source : all_sources()) {
    for (const Function& function : functions_of(source)) {
      if (runs_on_device(function)) continue;
      ++num_functions;
      EXPECT_LE(function.num_lines, 60) << source.path << ":" << function.first_line << ": " << function.head;
    }
  }
  EXPECT_GT(num_functions, 200);
}

TEST(Tree, TheFunctionBudgetCheckSeesFunctions) {
  const Source source{"core/x.cpp",
                      {"namespace a {", "struct B {", "  int f(int x) const {", "    if (x) { return 1; }", "    return '{';", "  }", "};",
                       "const int kList[] = {1, (2)};", "}"}};
  const std::vector<Function> functions = functions_of(source);
  ASSERT_EQ(functions.size(), 1u);
  EXPECT_EQ(functions[0].first_line, 3);
  EXPECT_EQ(functions[0].num_lines, 4);
}

#ifdef BRAID_CUDA_OBJECTS
/// Kernels in an object file: each has a host stub with a guarded static of its own.
int num_kernels(const fs::path& object) {
  const std::string command = std::string(BRAID_NM) + " '" + object.string() + "'";
  std::FILE* symbols = popen(command.c_str(), "r");
  EXPECT_TRUE(symbols) << command;
  int count = 0;
  char line[16384];
  while (symbols && std::fgets(line, sizeof line, symbols))
    count += std::string(line).find(" _ZGVZL") != std::string::npos && std::string(line).find("__device_stub__") != std::string::npos;
  EXPECT_EQ(pclose(symbols), 0) << command;
  return count;
}

TEST(Tree, KernelFilesKeepTheirInstantiations) {
  int num_files = 0, num_all = 0;
  for (const Source& source : all_sources()) {
    if (source.extension() != ".cu") continue;
    const int count = num_kernels(fs::path(BRAID_CUDA_OBJECTS) / (source.path + ".o"));
    EXPECT_LE(count, 8) << source.path;
    num_files += count > 0;
    num_all += count;
  }
  EXPECT_GT(num_files, 40);
  EXPECT_GT(num_all, 150);
}
#endif

TEST(Tree, TopLevelHoldsWhatIsGiven) {
  const std::set<std::string> given = {
      "CMakeLists.txt", "CMakePresets.json", "LICENSE", "README.md", "core", "autograd", "ops", "cuda", "models", "train", "io", "tests", "examples"};
  for (const auto& entry : fs::directory_iterator(kRoot)) {
    const std::string name = entry.path().filename().string();
    const bool made = name[0] == '.' || name.rfind("build", 0) == 0 || name == "quickstart" || name == "Testing";
    EXPECT_TRUE(made || given.count(name)) << name;
  }
}

}  // namespace
}  // namespace braid::testing
