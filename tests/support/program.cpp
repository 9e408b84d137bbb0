#include "tests/support/program.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <sstream>

namespace braid::test {
namespace fs = std::filesystem;
namespace {

std::string content(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

void redirect(const std::string& path, int descriptor) {
  const int file = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
  if (file < 0 || dup2(file, descriptor) < 0) _exit(126);
}

}  // namespace

Workspace::Workspace() {
  std::string pattern = (fs::temp_directory_path() / "braid-test-XXXXXX").string();
  path_ = mkdtemp(pattern.data());
}

Workspace::~Workspace() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

void Workspace::write(const std::string& name, const std::string& text) const { std::ofstream(path_ / name, std::ios::binary) << text; }

std::string Workspace::read(const std::string& name) const { return content(path_ / name); }

std::vector<std::string> Workspace::listing() const {
  std::vector<std::string> names;
  for (const auto& entry : fs::recursive_directory_iterator(path_))
    names.push_back(entry.path().string() + (entry.is_regular_file() ? " " + std::to_string(entry.file_size()) : "/"));
  std::sort(names.begin(), names.end());
  return names;
}

pid_t start(const std::string& program, const std::vector<std::string>& arguments, const Workspace& space, const std::string& out,
            const std::string& err) {
  std::vector<char*> words = {const_cast<char*>(program.c_str())};
  for (const std::string& argument : arguments) words.push_back(const_cast<char*>(argument.c_str()));
  words.push_back(nullptr);
  const pid_t process = fork();
  if (process != 0) return process;
  if (chdir(space.path().c_str()) != 0) _exit(126);
  redirect(out, STDOUT_FILENO);
  redirect(err, STDERR_FILENO);
  setenv("CUDA_VISIBLE_DEVICES", "", 1);  // what runs are compared by is the CPU's bits, whatever the machine has
  execv(program.c_str(), words.data());
  _exit(127);
}

int wait_for(pid_t process) {
  int status = 0;
  waitpid(process, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

ProgramResult run(const std::string& program, const std::vector<std::string>& arguments, const Workspace& space) {
  Workspace output;  // beside the space, so that a listing of it shows what the program wrote itself
  ProgramResult result;
  result.status = wait_for(start(program, arguments, space, output / "out", output / "err"));
  result.out = output.read("out");
  result.err = output.read("err");
  return result;
}

}  // namespace braid::test
