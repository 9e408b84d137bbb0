// The commands of the program, one function and one source file each.
#pragma once
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace braid::cli {

/// Exit statuses: all is well, something was checked and is wrong, the user asked for what cannot be done.
inline constexpr int kDone = 0, kCheckFailed = 1, kRefused = 2;

using Arguments = std::vector<std::string>;

// Each takes the arguments after its name and returns the exit status; a mistake of the user is an Error of one line.
int run_bench(const Arguments& arguments);
int run_check(const Arguments& arguments);
int run_convert(const Arguments& arguments);
int run_eval(const Arguments& arguments);
int run_forward(const Arguments& arguments);
int run_generate(const Arguments& arguments);
int run_inspect(const Arguments& arguments);
int run_models(const Arguments& arguments);
int run_study(const Arguments& arguments);
int run_tokenize(const Arguments& arguments);
int run_train(const Arguments& arguments);

struct Command {
  std::string_view name, summary;
  int (*run)(const Arguments& arguments);
};

}  // namespace braid::cli
