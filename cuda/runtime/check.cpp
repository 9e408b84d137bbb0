#include "cuda/runtime/check.h"

#include <map>
#include <mutex>

#include "cuda/runtime/runtime.h"

namespace braid::cuda {

void check(cudaError_t status, std::string_view what, std::source_location where) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // clears a sticky launch error, so that the next call is judged on its own
  std::string_view file = where.file_name();
  file = file.substr(file.find_last_of('/') + 1);
  fail("cuda: ", what, " failed: ", cudaGetErrorString(status), " (", file, ":", where.line(), ")");
}

cudaStream_t native(Stream stream) {
  int current = -1;  // a failure shows in the call that the stream is for
  if (cudaGetDevice(&current) == cudaSuccess && current != stream.device().index) cudaSetDevice(stream.device().index);
  return static_cast<cudaStream_t>(stream.native());
}

bool is_recorded(Stream stream) {
  cudaStreamCaptureStatus status;
  check(cudaStreamIsCapturing(native(stream), &status), "cudaStreamIsCapturing");
  return status == cudaStreamCaptureStatusActive;
}

bool may_overlap(Stream stream) { return is_recorded(stream) && facts(stream.device().index).compute_capability >= 90; }

void check_launch(cudaError_t status, std::string_view kernel_name, const LaunchConfig& config) {
  if (status == cudaSuccess) return;
  cudaGetLastError();
  fail("cuda: kernel ", kernel_name, " did not start: ", cudaGetErrorString(status), "; grid ", config.grid.x, "x", config.grid.y, "x", config.grid.z,
       ", block ", config.block.x, "x", config.block.y, ", ", config.shared_bytes, " bytes of shared memory, cluster ", config.cluster);
}

void allow_shared_bytes(const void* kernel, std::string_view kernel_name, size_t shared_bytes) {
  static std::mutex mutex;
  static std::map<std::pair<const void*, int>, size_t> allowed;
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  std::lock_guard lock(mutex);
  size_t& limit = allowed[{kernel, device}];
  if (shared_bytes <= limit) return;
  const cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
  if (status != cudaSuccess) {
    cudaGetLastError();
    fail("cuda: kernel ", kernel_name, " needs ", shared_bytes, " bytes of shared memory per block: ", cudaGetErrorString(status));
  }
  limit = shared_bytes;
}

}  // namespace braid::cuda
