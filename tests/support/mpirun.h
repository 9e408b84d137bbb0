// Starts several ranks of a program on this machine.
#pragma once
#include <unistd.h>

#include "tests/support/program.h"

namespace braid::test {

#ifdef BRAID_MPIRUN
inline const std::string kMpirun = BRAID_MPIRUN;
#else
inline const std::string kMpirun;
#endif

/// Empty where ranks can be started.
inline std::string why_no_ranks() {
  if (kMpirun.empty()) return "built without MPI (Debian: libopenmpi-dev openmpi-bin)";
  return access(kMpirun.c_str(), X_OK) == 0 ? "" : "no mpirun (Debian: openmpi-bin)";
}

/// As root too, with more ranks than cores. What MPI itself never frees is no finding of a sanitizer build.
inline ProgramResult mpirun(int size, const std::string& program, const std::vector<std::string>& arguments, const Workspace& space,
                            const std::vector<std::string>& options = {}) {
  std::vector<std::string> words = {
      "--allow-run-as-root", "--oversubscribe", "-x", "ASAN_OPTIONS=detect_leaks=0", "-n", std::to_string(size), program};
  words.insert(words.begin(), options.begin(), options.end());
  words.insert(words.end(), arguments.begin(), arguments.end());
  return run(kMpirun, words, space);
}

}  // namespace braid::test
