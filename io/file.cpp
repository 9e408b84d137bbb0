#include "io/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <system_error>

#include "core/error.h"

namespace braid {
namespace {

constexpr std::string_view kTemporaryMark = ".braid-tmp-";
constexpr size_t kBufferBytes = size_t{1} << 20;

/// A hidden name in the directory of `path`, so that a rename stays on one file system.
Path temporary_beside(const Path& path) {
  static std::atomic<int64_t> counter{0};
  BRAID_CHECK(path.has_filename(), "cannot write ", path.string(), ": it does not name a file");
  const std::string unique = std::to_string(getpid()) + "-" + std::to_string(counter.fetch_add(1));
  return path.parent_path() / ("." + path.filename().string() + std::string(kTemporaryMark) + unique);
}

/// `path`, which must not be there yet.
Path vacant(Path path) {
  struct stat status {};
  if (::lstat(path.c_str(), &status) == 0) fail_path("cannot make", path, EEXIST);
  return path;
}

Path directory_of(const Path& path) { return path.has_parent_path() ? path.parent_path() : Path("."); }

FileDescriptor open_for(std::string_view action, const Path& path, int flags, const Path& shown) {
  const int number = ::open(path.c_str(), flags | O_CLOEXEC, 0666);
  if (number < 0) fail_path(action, shown, errno);
  return FileDescriptor(number);
}

void write_all(int descriptor, const Path& path, const char* from, int64_t bytes) {
  while (bytes > 0) {
    const ssize_t written = ::write(descriptor, from, static_cast<size_t>(bytes));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail_path("cannot write", path, errno);
    from += written;
    bytes -= written;
  }
}

void sync_descriptor(const FileDescriptor& descriptor, const Path& path) {
  // Some file systems cannot sync directories and say EINVAL; their renames are as durable as they get.
  if (::fsync(descriptor.number()) != 0 && errno != EINVAL) fail_path("cannot write", path, errno);
}

}  // namespace

void fail_path(std::string_view action, const Path& path, int error_number) {
  fail(action, " ", path.string(), ": ", std::generic_category().message(error_number));
}

FileDescriptor& FileDescriptor::operator=(FileDescriptor&& other) noexcept {
  std::swap(number_, other.number_);
  return *this;
}

void FileDescriptor::reset() {
  if (number_ >= 0) ::close(number_);
  number_ = -1;
}

InputFile::InputFile(Path path) : path_(std::move(path)), descriptor_(open_for("cannot open", path_, O_RDONLY, path_)) {
  struct stat status {};
  if (::fstat(descriptor_.number(), &status) != 0) fail_path("cannot open", path_, errno);
  if (S_ISDIR(status.st_mode)) fail_path("cannot open", path_, EISDIR);
  size_bytes_ = S_ISREG(status.st_mode) ? status.st_size : 0;
}

int64_t InputFile::read(void* to, int64_t bytes) {
  int64_t done = 0;
  while (done < bytes) {
    const ssize_t got = ::read(descriptor_.number(), static_cast<char*>(to) + done, static_cast<size_t>(bytes - done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail_path("cannot read", path_, errno);
    if (got == 0) break;
    done += got;
  }
  return done;
}

void InputFile::read_at(int64_t offset, void* to, int64_t bytes) const {
  char* next = static_cast<char*>(to);
  while (bytes > 0) {
    const ssize_t got = ::pread(descriptor_.number(), next, static_cast<size_t>(bytes), offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail_path("cannot read", path_, errno);
    BRAID_CHECK(got > 0, "cannot read ", path_.string(), ": it ends before byte ", offset + bytes);
    next += got;
    offset += got;
    bytes -= got;
  }
}

MappedFile::MappedFile(const Path& path) {
  const InputFile file(path);
  size_bytes_ = file.size_bytes();
  if (size_bytes_ == 0) return;
  const int flags = MAP_PRIVATE | MAP_NORESERVE;
  void* mapped = ::mmap(nullptr, static_cast<size_t>(size_bytes_), PROT_READ | PROT_WRITE, flags, file.descriptor(), 0);
  if (mapped == MAP_FAILED) fail_path("cannot map", path, errno);
  data_ = static_cast<std::byte*>(mapped);
}

MappedFile::~MappedFile() {
  if (data_) ::munmap(data_, static_cast<size_t>(size_bytes_));
}

std::string read_file(const Path& path, int64_t max_bytes) {
  InputFile file(path);
  BRAID_CHECK(file.size_bytes() <= max_bytes, "cannot read ", path.string(), ": it has ", file.size_bytes(), " bytes, expected at most ", max_bytes);
  std::string content;
  for (;;) {  // pipes and files of /proc do not tell their size
    const size_t before = content.size();
    content.resize(before + std::max<size_t>(static_cast<size_t>(file.size_bytes()) + 1 - std::min<size_t>(before, file.size_bytes()), 4096));
    const int64_t got = file.read(content.data() + before, static_cast<int64_t>(content.size() - before));
    content.resize(before + static_cast<size_t>(got));
    if (got == 0) return content;
    BRAID_CHECK(static_cast<int64_t>(content.size()) <= max_bytes, "cannot read ", path.string(), ": it has more than ", max_bytes, " bytes");
  }
}

void write_file(const Path& path, std::string_view content) {
  AtomicFile file(path);
  file.write(content);
  file.commit();
}

AtomicPath::AtomicPath(Path path) : path_(std::move(path)), temporary_(temporary_beside(path_)) {
  struct stat status {};
  if (::stat(path_.c_str(), &status) == 0) {
    if (S_ISDIR(status.st_mode)) fail_path("cannot write", path_, EISDIR);
    BRAID_CHECK(S_ISREG(status.st_mode), "cannot write ", path_.string(), ": it is not a regular file");
  }
  open_for("cannot write", temporary_, O_WRONLY | O_CREAT | O_EXCL, path_);
}

AtomicPath::~AtomicPath() {
  if (!committed_) ::unlink(temporary_.c_str());
}

void AtomicPath::commit() {
  sync_path(temporary_);
  rename_path(temporary_, path_);
  committed_ = true;
  sync_path(directory_of(path_));
}

AtomicFile::AtomicFile(Path path) : name_(std::move(path)), descriptor_(open_for("cannot write", name_.temporary(), O_WRONLY, name_.path())) {}

void AtomicFile::flush(const char* from, int64_t bytes) { write_all(descriptor_.number(), name_.path(), from, bytes); }

void AtomicFile::write(const void* from, int64_t bytes) {
  const char* text = static_cast<const char*>(from);
  if (buffer_.size() + static_cast<size_t>(bytes) <= kBufferBytes) {
    buffer_.append(text, static_cast<size_t>(bytes));
    return;
  }
  flush(buffer_.data(), static_cast<int64_t>(buffer_.size()));
  buffer_.clear();
  if (bytes < static_cast<int64_t>(kBufferBytes)) buffer_.append(text, static_cast<size_t>(bytes));
  else flush(text, bytes);
}

void AtomicFile::commit() {
  flush(buffer_.data(), static_cast<int64_t>(buffer_.size()));
  buffer_.clear();
  name_.commit();
}

StagingDirectory::StagingDirectory(const Path& path) : path_(temporary_beside(path)) {
  if (::mkdir(path_.c_str(), 0777) != 0) fail_path("cannot make", path, errno);
}

StagingDirectory::~StagingDirectory() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

AtomicDirectory::AtomicDirectory(Path path) : path_(vacant(std::move(path))), staging_(path_) {}

void AtomicDirectory::commit() {
  std::error_code error;
  for (std::filesystem::recursive_directory_iterator entry(temporary(), error), end; !error && entry != end; entry.increment(error))
    sync_path(entry->path());
  if (error) fail_path("cannot read", temporary(), error.value());
  sync_path(temporary());
  rename_path(temporary(), vacant(path_));
  sync_path(directory_of(path_));
}

bool is_temporary_name(std::string_view name) { return name.starts_with('.') && name.find(kTemporaryMark) != std::string_view::npos; }

void make_directories(const Path& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) fail_path("cannot make directory", path, error.value());
  if (!std::filesystem::is_directory(path)) fail_path("cannot make directory", path, ENOTDIR);
  if (::access(path.c_str(), W_OK | X_OK) != 0) fail_path("cannot write into", path, errno);
}

void rename_path(const Path& from, const Path& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) fail_path("cannot write", to, errno);
}

void remove_path(const Path& path) {
  std::error_code error;
  std::filesystem::remove_all(path, error);
  if (error) fail_path("cannot remove", path, error.value());
}

void sync_path(const Path& path) { sync_descriptor(open_for("cannot write", path, O_RDONLY, path), path); }

std::vector<Path> list_directory(const Path& path) {
  std::error_code error;
  std::vector<Path> found;
  for (std::filesystem::directory_iterator entry(path, error), end; !error && entry != end; entry.increment(error)) found.push_back(entry->path());
  if (error) fail_path("cannot read", path, error.value());
  std::sort(found.begin(), found.end());
  return found;
}

}  // namespace braid
