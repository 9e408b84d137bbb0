#include "io/hdf5.h"

#include <algorithm>

#include "io/hdf5_internal.h"

namespace braid {
namespace {

constexpr size_t kCacheSlots = 4099;
constexpr size_t kCacheBytes = size_t{16} << 20;

herr_t keep_innermost(unsigned depth, const H5E_error2_t* error, void* out) {
  if (depth == 0 && error->desc) *static_cast<std::string*>(out) = error->desc;
  return 0;
}

/// Properties of opening: our driver, checksummed metadata in new files, no locks (files are complete when they get their names).
Hdf5Handle access_properties(const std::string& what) {
  Hdf5Handle access(H5Pcreate(H5P_FILE_ACCESS), what);
  check_hdf5(H5Pset_driver(access.id(), hdf5_driver(), nullptr), what);
  check_hdf5(H5Pset_libver_bounds(access.id(), H5F_LIBVER_V110, H5F_LIBVER_V110), what);
  check_hdf5(H5Pset_fclose_degree(access.id(), H5F_CLOSE_STRONG), what);
  check_hdf5(H5Pset_cache(access.id(), 0, kCacheSlots, kCacheBytes, 0.75), what);
  return access;
}

}  // namespace

void silence_hdf5() {
  thread_local const herr_t done = H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
  static_cast<void>(done);
}

void fail_hdf5(const std::string& what) {
  std::string reason;
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, keep_innermost, &reason);
  H5Eclear2(H5E_DEFAULT);
  if (reason.empty()) reason = "the HDF5 library gives no reason";
  for (char& c : reason)
    if (static_cast<unsigned char>(c) < ' ') c = ' ';
  fail(what, ": ", reason);
}

void Hdf5FileState::check_writes() const {
  if (writes->error_number != 0) fail_path("cannot write", name, writes->error_number);
}

Hdf5Handle::Hdf5Handle(int64_t id, const std::string& what) {
  check_hdf5(id, what);
  id_ = std::shared_ptr<const int64_t>(new int64_t(id), [](const int64_t* held) {
    // A file's close has closed its objects already; the number is then no handle any more.
    if (H5Iis_valid(*held) > 0) H5Idec_ref(*held);
    delete held;
  });
}

std::string Hdf5Group::joined(const std::string& path) const { return path_.empty() ? path : path_ + "/" + path; }

std::vector<std::string> Hdf5Group::names() const {
  silence_hdf5();
  std::vector<std::string> found;
  H5G_info_t info{};
  check_hdf5(H5Gget_info(handle_.id(), &info), name());
  for (hsize_t i = 0; i < info.nlinks; ++i) {
    const ssize_t length = H5Lget_name_by_idx(handle_.id(), ".", H5_INDEX_NAME, H5_ITER_INC, i, nullptr, 0, H5P_DEFAULT);
    check_hdf5(length, name());
    std::string text(static_cast<size_t>(length) + 1, '\0');
    check_hdf5(H5Lget_name_by_idx(handle_.id(), ".", H5_INDEX_NAME, H5_ITER_INC, i, text.data(), text.size(), H5P_DEFAULT), name());
    text.pop_back();
    found.push_back(text);
  }
  std::sort(found.begin(), found.end());
  return found;
}

bool Hdf5Group::contains(const std::string& path) const {
  silence_hdf5();
  for (size_t slash = path.find('/');; slash = path.find('/', slash + 1)) {
    const htri_t there = H5Lexists(handle_.id(), path.substr(0, slash).c_str(), H5P_DEFAULT);
    check_hdf5(there, name());
    if (there == 0) return false;
    if (slash == std::string::npos) return true;
  }
}

Hdf5Group Hdf5Group::group(const std::string& path) const {
  BRAID_CHECK(contains(path), file_->name, ": there is no group ", joined(path));
  return Hdf5Group({H5Gopen2(handle_.id(), path.c_str(), H5P_DEFAULT), file_->name + ": " + joined(path)}, joined(path), file_);
}

Hdf5Group Hdf5Group::create_group(const std::string& path) {
  silence_hdf5();
  const std::string what = file_->name + ": " + joined(path);
  const Hdf5Handle links(H5Pcreate(H5P_LINK_CREATE), what);
  check_hdf5(H5Pset_create_intermediate_group(links.id(), 1), what);
  Hdf5Group made({H5Gcreate2(handle_.id(), path.c_str(), links.id(), H5P_DEFAULT, H5P_DEFAULT), what}, joined(path), file_);
  file_->check_writes();
  return made;
}

Hdf5File::Hdf5File(const std::shared_ptr<Hdf5FileState>& state) : Hdf5Group({H5Gopen2(state->file.id(), "/", H5P_DEFAULT), state->name}, "", state) {}

Hdf5File Hdf5File::open(const Path& path) {
  silence_hdf5();
  auto state = std::make_shared<Hdf5FileState>();
  state->name = path.string();
  state->num_bytes = InputFile(path).size_bytes();  // plain words for a file that is missing
  const Hdf5Handle access = access_properties(state->name);
  state->file = Hdf5Handle(H5Fopen(path.c_str(), H5F_ACC_RDONLY, access.id()), state->name + ": cannot be read as HDF5");
  state->writes = hdf5_writes(state->file.id());
  return Hdf5File(state);
}

Hdf5File Hdf5File::create(const Path& path, const Path& shown) {
  silence_hdf5();
  auto state = std::make_shared<Hdf5FileState>();
  state->name = shown.string();
  state->num_bytes = INT64_MAX;  // what is written here is trusted
  const Hdf5Handle access = access_properties(state->name);
  state->file = Hdf5Handle(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access.id()), "cannot write " + state->name);
  state->writes = hdf5_writes(state->file.id());
  return Hdf5File(state);
}

void Hdf5File::close() {
  silence_hdf5();
  BRAID_CHECK(H5Iis_valid(file_->file.id()) > 0, file_->name, ": the file is closed already");
  const herr_t closed = H5Fclose(file_->file.id());
  file_->check_writes();
  check_hdf5(closed, "cannot write " + file_->name);
}

}  // namespace braid
