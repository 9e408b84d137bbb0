// Starts several ranks of a program on this machine.
#pragma once
#include <unistd.h>

#include "tests/support/program.h"

#ifdef BRAID_MPIRUN
#define BRAID_SKIP_WITHOUT_MPI() \
  if (access(BRAID_MPIRUN, X_OK) != 0) GTEST_SKIP() << "no mpirun (Debian: openmpi-bin)"
#else
#define BRAID_MPIRUN ""
#define BRAID_SKIP_WITHOUT_MPI() GTEST_SKIP() << "built without MPI (Debian: libopenmpi-dev openmpi-bin)"
#endif

namespace braid::test {

/// As root too, with more ranks than cores. What MPI itself never frees is no finding of a sanitizer build.
inline ProgramResult mpirun(int size, const std::string& program, const std::vector<std::string>& arguments, const Workspace& space) {
  std::vector<std::string> words = {
      "--allow-run-as-root", "--oversubscribe", "-x", "ASAN_OPTIONS=detect_leaks=0", "-n", std::to_string(size), program};
  words.insert(words.end(), arguments.begin(), arguments.end());
  return run(BRAID_MPIRUN, words, space);
}

}  // namespace braid::test
