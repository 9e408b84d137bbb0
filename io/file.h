// Files: reading with errors that name path and reason, and writing that is either whole or not there at all.
#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace braid {

using Path = std::filesystem::path;

/// Throws Error "`action` `path`: reason of `error_number`", for example "cannot open a/b: No such file or directory".
[[noreturn]] void fail_path(std::string_view action, const Path& path, int error_number);

/// An open file descriptor, closed at the end of its life.
class FileDescriptor {
 public:
  explicit FileDescriptor(int number = -1) : number_(number) {}
  ~FileDescriptor() { reset(); }
  FileDescriptor(FileDescriptor&& other) noexcept : number_(other.number_) { other.number_ = -1; }
  FileDescriptor& operator=(FileDescriptor&& other) noexcept;
  int number() const { return number_; }
  void reset();

 private:
  int number_;
};

/// A file opened for reading. Throws Error when it cannot be opened or is a directory.
class InputFile {
 public:
  explicit InputFile(Path path);
  const Path& path() const { return path_; }
  /// Size when it was opened (0 for pipes).
  int64_t size_bytes() const { return size_bytes_; }
  /// Reads on: as many bytes as there are, at most `bytes`; 0 at the end.
  int64_t read(void* to, int64_t bytes);
  /// Exactly `bytes` from `offset` on; Error when the file ends before.
  void read_at(int64_t offset, void* to, int64_t bytes) const;
  int descriptor() const { return descriptor_.number(); }

 private:
  Path path_;
  FileDescriptor descriptor_;
  int64_t size_bytes_ = 0;
};

/// A whole file mapped into memory. Writing to the bytes changes this process's copy of them, never the file.
/// The file must not be shortened meanwhile (files replaced by rename, as all of Braid's are, keep their old bytes).
class MappedFile {
 public:
  explicit MappedFile(const Path& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  std::byte* data() const { return data_; }
  int64_t size_bytes() const { return size_bytes_; }

 private:
  std::byte* data_ = nullptr;
  int64_t size_bytes_ = 0;
};

/// The whole content. Error when it is larger than `max_bytes`.
std::string read_file(const Path& path, int64_t max_bytes = int64_t{1} << 30);
/// Replaces the file's content in one step (AtomicFile).
void write_file(const Path& path, std::string_view content);

/// A name beside `path`, to be written by somebody else (a library that wants a path). commit() syncs the file and renames it to
/// `path`: readers see the old file or the new one, also after a crash. Without commit the temporary file is removed.
/// Error when the directory is missing or cannot be written, or `path` is there but is not a regular file.
class AtomicPath {
 public:
  explicit AtomicPath(Path path);
  ~AtomicPath();
  AtomicPath(const AtomicPath&) = delete;
  AtomicPath& operator=(const AtomicPath&) = delete;
  const Path& path() const { return path_; }
  const Path& temporary() const { return temporary_; }
  void commit();

 private:
  Path path_, temporary_;
  bool committed_ = false;
};

/// A file written as AtomicPath does, byte after byte. Any failure (disk full, directory gone) is an Error and leaves the old file whole.
class AtomicFile {
 public:
  explicit AtomicFile(Path path);
  void write(const void* from, int64_t bytes);
  void write(std::string_view text) { write(text.data(), static_cast<int64_t>(text.size())); }
  void commit();
  const Path& path() const { return name_.path(); }

 private:
  AtomicPath name_;
  FileDescriptor descriptor_;
  std::string buffer_;
  void flush(const char* from, int64_t bytes);
};

/// A new directory beside `path` under a temporary name, removed with all it then holds at the end of its life.
class StagingDirectory {
 public:
  explicit StagingDirectory(const Path& path);
  ~StagingDirectory();
  StagingDirectory(const StagingDirectory&) = delete;
  StagingDirectory& operator=(const StagingDirectory&) = delete;
  const Path& path() const { return path_; }

 private:
  Path path_;
};

/// A directory that appears under its name with all it holds, or not at all: fill temporary(), then commit() syncs every file in it
/// and renames. Error when `path` is already there. Without commit the temporary directory is removed.
class AtomicDirectory {
 public:
  explicit AtomicDirectory(Path path);
  const Path& temporary() const { return staging_.path(); }
  void commit();

 private:
  Path path_;
  StagingDirectory staging_;
};

/// Whether `name` is that of a temporary file or directory left by a process that was killed.
bool is_temporary_name(std::string_view name);
/// Makes the directory and its parents; Error naming path and reason when one cannot be made or written into.
void make_directories(const Path& path);
/// Gives a file or directory another name, in place of the file that had it, in one step.
void rename_path(const Path& from, const Path& to);
/// Removes a file or a directory with all it holds; nothing when absent.
void remove_path(const Path& path);
/// Waits until the names in a directory (or a file's content) are on the disk.
void sync_path(const Path& path);
/// What a directory holds, sorted by name. Error when it cannot be read.
std::vector<Path> list_directory(const Path& path);

}  // namespace braid
