// What the files of the HDF5 wrapper share. Includes the library's header, so only sources include this.
#pragma once
#include <hdf5.h>

#include <string>
#include <type_traits>

#include "core/dtype.h"
#include "io/hdf5.h"
#include "io/hdf5_driver.h"

namespace braid {

struct Hdf5FileState {
  std::string name;  // what errors call the file
  int64_t num_bytes = 0;
  std::shared_ptr<Hdf5Writes> writes;
  Hdf5Handle file;  // shared by all objects of the file: it lives as long as one of them

  /// Error when a write to the file has failed.
  void check_writes() const;
};

/// Stops the library from printing its errors on this thread. Call before any use of it.
void silence_hdf5();
/// Throws Error "`what`: reason" with the innermost reason on the library's stack.
[[noreturn]] void fail_hdf5(const std::string& what);
inline void check_hdf5(int64_t status, const std::string& what) {
  if (status < 0) fail_hdf5(what);
}

/// The library's type of T in this machine's memory.
template <class T>
hid_t memory_type() {
  if constexpr (std::is_same_v<T, uint8_t>) return H5T_NATIVE_UINT8;
  else if constexpr (std::is_same_v<T, uint16_t>) return H5T_NATIVE_UINT16;
  else if constexpr (std::is_same_v<T, uint32_t>) return H5T_NATIVE_UINT32;
  else if constexpr (std::is_same_v<T, uint64_t>) return H5T_NATIVE_UINT64;
  else if constexpr (std::is_same_v<T, int32_t>) return H5T_NATIVE_INT32;
  else if constexpr (std::is_same_v<T, int64_t>) return H5T_NATIVE_INT64;
  else if constexpr (std::is_same_v<T, float>) return H5T_NATIVE_FLOAT;
  else return H5T_NATIVE_DOUBLE;
}

/// The little-endian type on disk.
template <class T>
hid_t disk_type() {
  if constexpr (std::is_same_v<T, uint8_t>) return H5T_STD_U8LE;
  else if constexpr (std::is_same_v<T, uint16_t>) return H5T_STD_U16LE;
  else if constexpr (std::is_same_v<T, uint32_t>) return H5T_STD_U32LE;
  else if constexpr (std::is_same_v<T, uint64_t>) return H5T_STD_U64LE;
  else if constexpr (std::is_same_v<T, int32_t>) return H5T_STD_I32LE;
  else if constexpr (std::is_same_v<T, int64_t>) return H5T_STD_I64LE;
  else if constexpr (std::is_same_v<T, float>) return H5T_IEEE_F32LE;
  else return H5T_IEEE_F64LE;
}

}  // namespace braid
