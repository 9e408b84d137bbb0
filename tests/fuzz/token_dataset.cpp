#include "tests/fuzz/targets.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  braid::fuzz::read_token_dataset({reinterpret_cast<const char*>(data), size});
  return 0;
}

// The HDF5 library forgets some of its own memory when it refuses a damaged file.
extern "C" const char* __lsan_default_suppressions() { return "leak:libhdf5"; }
