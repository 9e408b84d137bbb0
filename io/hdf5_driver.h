// How the HDF5 library reaches files: a driver of ours that remembers a failed write instead of reporting it to the library. The
// library leaks and crashes at exit when a write fails while it closes a file; it never sees one this way, and whoever closes the
// file asks here.
#pragma once
#include <cstdint>
#include <memory>

namespace braid {

/// What became of the writes to one open file.
struct Hdf5Writes {
  int error_number = 0;  // errno of the first that failed; 0: none did
};

/// The driver's identifier in the library; registered when first asked for.
int64_t hdf5_driver();
/// The state of an open file that uses the driver; it outlives the file.
std::shared_ptr<Hdf5Writes> hdf5_writes(int64_t file_id);

}  // namespace braid
