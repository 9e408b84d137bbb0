#include "cuda/runtime/tensor_map.h"

#include "core/error.h"
#include "cuda/runtime/check.h"

namespace braid::cuda {
namespace {

// From the driver by name: the engine does not link against libcuda.
auto encoder() {
  using Encode = decltype(&cuTensorMapEncodeTiled);
  static const Encode encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found), "cudaGetDriverEntryPoint");
    BRAID_CHECK(found == cudaDriverEntryPointSuccess, "cuda: the driver must offer cuTensorMapEncodeTiled (CUDA 12 or later)");
    return reinterpret_cast<Encode>(function);
  }();
  return encode;
}

}  // namespace

CUtensorMap head_tensor_map(const void* address, int64_t tokens, int64_t heads, int64_t dim, int box_rows) {
  CUtensorMap map = {};
  const cuuint64_t sizes[3] = {static_cast<cuuint64_t>(dim), static_cast<cuuint64_t>(heads), static_cast<cuuint64_t>(tokens)};
  const cuuint64_t strides_bytes[2] = {sizes[0] * 2, sizes[0] * sizes[1] * 2};
  const cuuint32_t box[3] = {64, 1, static_cast<cuuint32_t>(box_rows)}, steps[3] = {1, 1, 1};
  const CUresult result =
      encoder()(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, const_cast<void*>(address), sizes, strides_bytes, box, steps,
                CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  BRAID_CHECK(result == CUDA_SUCCESS, "cuda: no tensor map for bf16 [", tokens, ", ", heads, ", ", dim, "]: error ", static_cast<int>(result));
  return map;
}

CUtensorMap row_tensor_map(const void* address, int64_t rows, int64_t columns, int64_t stride, int box) {
  CUtensorMap map = {};
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)}, stride_bytes = static_cast<cuuint64_t>(stride) * 8;
  const cuuint32_t boxes[2] = {static_cast<cuuint32_t>(box), 1}, steps[2] = {1, 1};
  const CUresult result =
      encoder()(&map, CU_TENSOR_MAP_DATA_TYPE_UINT64, 2, const_cast<void*>(address), sizes, &stride_bytes, boxes, steps,
                CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  BRAID_CHECK(result == CUDA_SUCCESS, "cuda: no tensor map for rows [", rows, ", ", columns, "] of 8 bytes: error ", static_cast<int>(result));
  return map;
}

}  // namespace braid::cuda
