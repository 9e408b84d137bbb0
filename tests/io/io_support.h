// What the tests of io share: a directory of their own, a disk that fills up, and errors looked at closely.
#pragma once
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <fstream>
#include <string>

#include "core/error.h"
#include "io/file.h"

namespace braid::testing {

class TempDir {
 public:
  TempDir() {
    std::string pattern = (std::filesystem::temp_directory_path() / "braid-io-XXXXXX").string();
    if (!mkdtemp(pattern.data())) fail_path("cannot make", pattern, errno);
    path_ = pattern;
  }
  ~TempDir() { remove_path(path_); }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  Path operator/(const std::string& name) const { return path_ / name; }
  const Path& path() const { return path_; }
  size_t num_entries() const { return list_directory(path_).size(); }

 private:
  Path path_;
};

/// While it lives, no file can grow beyond `bytes`: writes fail as on a full disk (EFBIG).
class FullDisk {
 public:
  explicit FullDisk(int64_t bytes) : signal_before_(::signal(SIGXFSZ, SIG_IGN)) {
    ::getrlimit(RLIMIT_FSIZE, &before_);
    rlimit limited = before_;
    limited.rlim_cur = static_cast<rlim_t>(bytes);
    ::setrlimit(RLIMIT_FSIZE, &limited);
  }
  ~FullDisk() {
    ::setrlimit(RLIMIT_FSIZE, &before_);
    ::signal(SIGXFSZ, signal_before_);
  }
  FullDisk(const FullDisk&) = delete;
  FullDisk& operator=(const FullDisk&) = delete;

 private:
  rlimit before_{};
  void (*signal_before_)(int);
};

/// Writes without waiting for the disk: for tests that write thousands of files.
inline void overwrite(const Path& path, const std::string& content) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(content.data(), static_cast<std::streamsize>(content.size()));
}

/// The message of the Error that `body` must throw; it must be one line.
template <class Body>
std::string message_of(Body&& body) {
  try {
    body();
  } catch (const Error& error) {
    const std::string message = error.what();
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    EXPECT_FALSE(message.empty());
    return message;
  }
  ADD_FAILURE() << "expected an Error";
  return "";
}

/// Expects an Error whose line holds `part`.
template <class Body>
void expect_error(const std::string& part, Body&& body) {
  const std::string message = message_of(body);
  EXPECT_NE(message.find(part), std::string::npos) << "expected \"" << part << "\" in: " << message;
}

}  // namespace braid::testing
