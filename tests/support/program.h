// Runs the program braid as a user would, and looks at what it left.
#pragma once
#include <sys/types.h>

#include <filesystem>
#include <string>
#include <vector>

namespace braid::test {

struct ProgramResult {
  int status = -1;  // exit status; 128 + signal when it was killed
  std::string out, err;
};

/// A temporary directory, removed with all it holds.
class Workspace {
 public:
  Workspace();
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  const std::filesystem::path& path() const { return path_; }
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }
  void write(const std::string& name, const std::string& content) const;
  std::string read(const std::string& name) const;
  /// Every file and directory in it with its size: what "nothing was written" is compared with.
  std::vector<std::string> listing() const;

 private:
  std::filesystem::path path_;
};

/// Starts `program arguments…` in `space`, its output in files there; returns its process id.
pid_t start(const std::string& program, const std::vector<std::string>& arguments, const Workspace& space, const std::string& out,
            const std::string& err);
/// Waits for it; 128 + signal when it was killed.
int wait_for(pid_t process);
/// start and wait_for, with what it printed.
ProgramResult run(const std::string& program, const std::vector<std::string>& arguments, const Workspace& space);

}  // namespace braid::test
