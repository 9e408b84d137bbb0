#include "tests/fuzz/targets.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  braid::fuzz::read_config({reinterpret_cast<const char*>(data), size});
  return 0;
}
