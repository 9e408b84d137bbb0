// Attributes of HDF5 objects.
#include <type_traits>

#include "io/hdf5_internal.h"

namespace braid {
namespace {

constexpr size_t kMaxTextBytes = 60000;  // what an object header holds

std::string read_text(const Hdf5Handle& attribute, const Hdf5Handle& type, const std::string& what) {
  if (H5Tis_variable_str(type.id()) > 0) {
    char* text = nullptr;
    const Hdf5Handle memory(H5Tcopy(type.id()), what);
    check_hdf5(H5Aread(attribute.id(), memory.id(), &text), what);
    std::string copy = text ? text : "";
    H5free_memory(text);
    return copy;
  }
  const size_t size = H5Tget_size(type.id());
  BRAID_CHECK(size > 0 && size <= kMaxTextBytes, what, ": a text of ", size, " bytes is too long");
  std::string text(size, '\0');
  check_hdf5(H5Aread(attribute.id(), type.id(), text.data()), what);
  return text.substr(0, text.find('\0'));
}

template <class T>
Hdf5Handle type_on_disk(const T& value, const std::string& what) {
  if constexpr (std::is_same_v<T, std::string>) {
    BRAID_CHECK(value.size() <= kMaxTextBytes, what, ": a text of at most ", kMaxTextBytes, " bytes is expected, got ", value.size());
    Hdf5Handle type(H5Tcopy(H5T_C_S1), what);
    check_hdf5(H5Tset_size(type.id(), value.size() + 1), what);
    check_hdf5(H5Tset_cset(type.id(), H5T_CSET_UTF8), what);
    return type;
  } else {
    return Hdf5Handle(H5Tcopy(disk_type<T>()), what);
  }
}

}  // namespace

std::string Hdf5Object::name() const { return path_.empty() ? file_->name : file_->name + ": " + path_; }

bool Hdf5Object::has_attribute(const std::string& name) const {
  silence_hdf5();
  const htri_t there = H5Aexists(handle_.id(), name.c_str());
  check_hdf5(there, this->name() + ": attribute " + name);
  return there > 0;
}

template <class T>
T Hdf5Object::attribute(const std::string& name) const {
  const std::string what = this->name() + ": attribute " + name;
  BRAID_CHECK(has_attribute(name), what, " is missing");
  const Hdf5Handle attribute(H5Aopen(handle_.id(), name.c_str(), H5P_DEFAULT), what);
  const Hdf5Handle space(H5Aget_space(attribute.id()), what);
  BRAID_CHECK(H5Sget_simple_extent_npoints(space.id()) == 1, what, " must be one value, not a list");
  const Hdf5Handle type(H5Aget_type(attribute.id()), what);
  const H5T_class_t kind = H5Tget_class(type.id());
  if constexpr (std::is_same_v<T, std::string>) {
    BRAID_CHECK(kind == H5T_STRING, what, " must be a text");
    return read_text(attribute, type, what);
  } else {
    const bool integer = std::is_same_v<T, int64_t>;
    BRAID_CHECK(kind == (integer ? H5T_INTEGER : H5T_FLOAT), what, " must be ", integer ? "an integer" : "a floating number");
    T value{};
    check_hdf5(H5Aread(attribute.id(), memory_type<T>(), &value), what);
    return value;
  }
}

template <class T>
void Hdf5Object::set_attribute(const std::string& name, const T& value) {
  const std::string what = this->name() + ": attribute " + name;
  if (has_attribute(name)) check_hdf5(H5Adelete(handle_.id(), name.c_str()), what);
  const Hdf5Handle type = type_on_disk(value, what);
  const Hdf5Handle space(H5Screate(H5S_SCALAR), what);
  const Hdf5Handle attribute(H5Acreate2(handle_.id(), name.c_str(), type.id(), space.id(), H5P_DEFAULT, H5P_DEFAULT), what);
  if constexpr (std::is_same_v<T, std::string>) check_hdf5(H5Awrite(attribute.id(), type.id(), value.c_str()), what);
  else check_hdf5(H5Awrite(attribute.id(), memory_type<T>(), &value), what);
  file_->check_writes();
}

template int64_t Hdf5Object::attribute(const std::string&) const;
template double Hdf5Object::attribute(const std::string&) const;
template std::string Hdf5Object::attribute(const std::string&) const;
template void Hdf5Object::set_attribute(const std::string&, const int64_t&);
template void Hdf5Object::set_attribute(const std::string&, const double&);
template void Hdf5Object::set_attribute(const std::string&, const std::string&);

}  // namespace braid
