// Every CUDA call goes through check, every kernel launch through launch.
#pragma once
#include <cuda_runtime.h>

#include <source_location>
#include <string_view>

#include "core/device.h"

namespace braid::cuda {

/// Throws Error "cuda: WHAT failed: REASON (file:line)" unless `status` is success.
void check(cudaError_t status, std::string_view what, std::source_location where = std::source_location::current());

/// As CUDA knows it. Its device becomes the calling thread's current one, which launches, copies and allocations on the stream need.
cudaStream_t native(Stream stream);

/// Whether a graph is being recorded on the stream.
bool is_recorded(Stream stream);

/// Whether a kernel on the stream may begin before the one it follows has ended: where a graph is recorded, on a GPU of compute capability 9.0.
bool may_overlap(Stream stream);

/// Grid, block and dynamic shared memory of one launch; `cluster` > 1 launches clusters of that many blocks along x. A kernel that `overlaps`
/// waits for earlier ones by itself (cuda/device/overlap.h), and is launched early where that may be.
struct LaunchConfig {
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;
  int cluster = 1;
  bool overlaps = false;
};

/// Throws unless the kernel may use that much shared memory and started; the error names kernel and configuration.
void check_launch(cudaError_t status, std::string_view kernel_name, const LaunchConfig& config);
/// Raises the kernel's dynamic shared memory limit (once per kernel and size).
void allow_shared_bytes(const void* kernel, std::string_view kernel_name, size_t shared_bytes);

/// Launches kernel(params) on the stream. An empty grid is no launch.
template <class Params>
void launch(Stream stream, std::string_view name, void (*kernel)(Params), const LaunchConfig& config, const Params& params) {
  if (config.grid.x == 0 || config.grid.y == 0 || config.grid.z == 0) return;
  cudaLaunchConfig_t native_config = {};
  native_config.stream = native(stream);  // and the kernel's limits are asked of its device
  // The 48 KB that need no permission include what the kernel declares itself.
  if (config.shared_bytes > 16 * 1024) allow_shared_bytes(reinterpret_cast<const void*>(kernel), name, config.shared_bytes);
  native_config.gridDim = config.grid, native_config.blockDim = config.block, native_config.dynamicSmemBytes = config.shared_bytes;
  cudaLaunchAttribute attributes[2];
  native_config.attrs = attributes;
  if (config.cluster > 1) {
    cudaLaunchAttribute& attribute = attributes[native_config.numAttrs++];
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {static_cast<unsigned>(config.cluster), 1, 1};
  }
  if (config.overlaps && may_overlap(stream)) {
    cudaLaunchAttribute& attribute = attributes[native_config.numAttrs++];
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
  }
  check_launch(cudaLaunchKernelEx(&native_config, kernel, params), name, config);
}

}  // namespace braid::cuda
