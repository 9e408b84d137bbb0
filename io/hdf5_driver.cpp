#include "io/hdf5_driver.h"

#include <fcntl.h>
#include <hdf5.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#if H5_VERSION_GE(1, 13, 0)
#include <H5FDdevelop.h>
#endif

#include "core/error.h"

namespace braid {
namespace {

struct DriverFile {
  H5FD_t base;  // first: the library sees a DriverFile as this
  std::shared_ptr<Hdf5Writes> writes;
  int descriptor;
  haddr_t end_allocated, end_of_file;
  dev_t device;
  ino_t inode;
};

DriverFile& cast(H5FD_t* file) { return *reinterpret_cast<DriverFile*>(file); }
const DriverFile& cast(const H5FD_t* file) { return *reinterpret_cast<const DriverFile*>(file); }

constexpr haddr_t kMaxAddress = (haddr_t{1} << 62);

H5FD_t* open_file(const char* name, unsigned flags, hid_t, haddr_t) {
  int mode = O_CLOEXEC | ((flags & H5F_ACC_RDWR) ? O_RDWR : O_RDONLY);
  if (flags & H5F_ACC_TRUNC) mode |= O_TRUNC;
  if (flags & H5F_ACC_CREAT) mode |= O_CREAT;
  if (flags & H5F_ACC_EXCL) mode |= O_EXCL;
  const int descriptor = ::open(name, mode, 0666);
  if (descriptor < 0) return nullptr;
  struct stat status {};
  if (::fstat(descriptor, &status) != 0) {
    ::close(descriptor);
    return nullptr;
  }
  auto* file = new DriverFile{};
  file->writes = std::make_shared<Hdf5Writes>();
  file->descriptor = descriptor;
  file->end_of_file = static_cast<haddr_t>(status.st_size);
  file->device = status.st_dev;
  file->inode = status.st_ino;
  return &file->base;
}

herr_t close_file(H5FD_t* base) {
  DriverFile& file = cast(base);
  // Network file systems may report a failed write only here.
  if (::close(file.descriptor) != 0 && file.writes->error_number == 0) file.writes->error_number = errno;
  delete &file;
  return 0;
}

int compare_files(const H5FD_t* base_a, const H5FD_t* base_b) {
  const DriverFile &a = cast(base_a), &b = cast(base_b);
  if (a.device != b.device) return a.device < b.device ? -1 : 1;
  if (a.inode != b.inode) return a.inode < b.inode ? -1 : 1;
  return 0;
}

herr_t query_features(const H5FD_t*, unsigned long* flags) {
  *flags = H5FD_FEAT_AGGREGATE_METADATA | H5FD_FEAT_ACCUMULATE_METADATA | H5FD_FEAT_DATA_SIEVE | H5FD_FEAT_AGGREGATE_SMALLDATA |
           H5FD_FEAT_DEFAULT_VFD_COMPATIBLE;
  return 0;
}

haddr_t get_end_allocated(const H5FD_t* file, H5FD_mem_t) { return cast(file).end_allocated; }
haddr_t get_end_of_file(const H5FD_t* file, H5FD_mem_t) { return cast(file).end_of_file; }
herr_t set_end_allocated(H5FD_t* file, H5FD_mem_t, haddr_t address) {
  cast(file).end_allocated = address;
  return 0;
}
herr_t get_handle(H5FD_t* file, hid_t, void** handle) {
  *handle = &cast(file).writes;
  return 0;
}

herr_t read_bytes(H5FD_t* base, H5FD_mem_t, hid_t, haddr_t address, size_t size, void* to) {
  const DriverFile& file = cast(base);
  if (address > kMaxAddress || size > kMaxAddress - address) return -1;
  char* next = static_cast<char*>(to);
  while (size > 0) {
    const ssize_t got = ::pread(file.descriptor, next, size, static_cast<off_t>(address));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return -1;
    if (got == 0) {  // the library expects zeros beyond the end
      std::memset(next, 0, size);
      return 0;
    }
    next += got;
    address += static_cast<haddr_t>(got);
    size -= static_cast<size_t>(got);
  }
  return 0;
}

herr_t write_bytes(H5FD_t* base, H5FD_mem_t, hid_t, haddr_t address, size_t size, const void* from) {
  DriverFile& file = cast(base);
  file.end_of_file = std::max(file.end_of_file, address + size);
  const char* next = static_cast<const char*>(from);
  while (size > 0 && file.writes->error_number == 0) {
    const ssize_t written = ::pwrite(file.descriptor, next, size, static_cast<off_t>(address));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) {
      file.writes->error_number = errno;
      break;
    }
    next += written;
    address += static_cast<haddr_t>(written);
    size -= static_cast<size_t>(written);
  }
  return 0;
}

herr_t truncate_file(H5FD_t* base, hid_t, hbool_t) {
  DriverFile& file = cast(base);
  if (file.end_allocated == file.end_of_file) return 0;
  if (file.writes->error_number == 0 && ::ftruncate(file.descriptor, static_cast<off_t>(file.end_allocated)) != 0) file.writes->error_number = errno;
  file.end_of_file = file.end_allocated;
  return 0;
}

H5FD_class_t make_class() {
  H5FD_class_t driver{};
#if H5_VERSION_GE(1, 13, 0)
  driver.version = H5FD_CLASS_VERSION;
  driver.value = static_cast<H5FD_class_value_t>(512);  // the first free for drivers that are not the library's
#endif
  driver.name = "braid";
  driver.maxaddr = kMaxAddress;
  driver.fc_degree = H5F_CLOSE_STRONG;
  driver.open = open_file;
  driver.close = close_file;
  driver.cmp = compare_files;
  driver.query = query_features;
  driver.get_eoa = get_end_allocated;
  driver.set_eoa = set_end_allocated;
  driver.get_eof = get_end_of_file;
  driver.get_handle = get_handle;
  driver.read = read_bytes;
  driver.write = write_bytes;
  driver.truncate = truncate_file;
  const H5FD_mem_t map[] = H5FD_FLMAP_DICHOTOMY;
  std::copy(std::begin(map), std::end(map), driver.fl_map);
  return driver;
}

}  // namespace

int64_t hdf5_driver() {
  static const H5FD_class_t driver = make_class();
  static const hid_t id = H5FDregister(&driver);
  BRAID_CHECK(id >= 0, "hdf5: the file driver cannot be registered");
  return id;
}

std::shared_ptr<Hdf5Writes> hdf5_writes(int64_t file_id) {
  void* handle = nullptr;
  BRAID_CHECK(H5Fget_vfd_handle(file_id, H5P_DEFAULT, &handle) >= 0 && handle, "hdf5: the file was opened with another driver");
  return *static_cast<std::shared_ptr<Hdf5Writes>*>(handle);
}

}  // namespace braid
