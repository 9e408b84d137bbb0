#include "cuda/runtime/blas.h"

#include <cublasLt.h>

#include <algorithm>
#include <array>
#include <map>
#include <mutex>
#include <span>
#include <thread>
#include <tuple>
#include <vector>

#include "core/owner.h"
#include "cuda/runtime/check.h"

namespace braid::cuda {
namespace {

constexpr size_t kWorkspaceBytes = 32 << 20;  // what cuBLASLt recommends for Hopper
constexpr int kCandidates = 8;

void check_blas(cublasStatus_t status, const Product& p, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  fail("cuda: ", what, " of a product [", p.m, ", ", p.k, "] x [", p.k, ", ", p.n, "] failed: ", cublasLtGetStatusName(status));
}

cudaDataType_t data_type(DType dtype) {
  switch (dtype) {
    case DType::bf16:
      return CUDA_R_16BF;
    case DType::f32:
      return CUDA_R_32F;
    case DType::f64:
      return CUDA_R_64F;
    default:
      fail("cuda: products are of bf16, f32 or f64, got ", dtype);
  }
}

/// Everything a product of one kind and shape needs, made once.
struct Plan {
  cublasLtHandle_t handle = nullptr;
  cublasLtMatmulDesc_t operation = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, c = nullptr;
  cublasLtMatmulAlgo_t algorithm;
};

/// The largest power of two, up to an allocation's 256, that an address is a multiple of: algorithms differ in what they need.
uint32_t alignment_of(const Tensor& tensor) {
  const auto address = reinterpret_cast<uintptr_t>(tensor.raw());
  return static_cast<uint32_t>(std::min<uintptr_t>(256, address & (~address + 1)));
}

struct Operands {
  DType in, out;
  uint32_t align_a, align_b, align_c;
  friend auto operator<=>(const Operands&, const Operands&) = default;
};
using Key = std::tuple<int, bool, bool, bool, int64_t, int64_t, int64_t, Operands>;

/// The heuristic's first, except where a middle-sized tile (128 × 160 and its like) has many turns for the depth of its sums. Measured on an H100
/// with bf16 products of the presets (README.md): it is up to 1.3 times as fast there as the larger tiles that come first.
const cublasLtMatmulHeuristicResult_t& choose(std::span<const cublasLtMatmulHeuristicResult_t> candidates, int64_t k) {
  constexpr double kDepthOfATurn = 256;
  for (const uint32_t wanted : {CUBLASLT_MATMUL_TILE_128x160, CUBLASLT_MATMUL_TILE_176x128, CUBLASLT_MATMUL_TILE_168x128})
    for (const auto& candidate : candidates) {
      uint32_t tile = CUBLASLT_MATMUL_TILE_UNDEFINED;
      size_t written = 0;
      cublasLtMatmulAlgoConfigGetAttribute(&candidate.algo, CUBLASLT_ALGO_CONFIG_TILE_ID, &tile, sizeof(tile), &written);
      if (tile == wanted && candidate.wavesCount * kDepthOfATurn >= static_cast<double>(k)) return candidate;
    }
  return candidates[0];
}

/// cuBLASLt thinks in columns: row-major c = a·b is column-major c^T = b^T·a^T, so b comes first and sizes swap.
Plan make_plan(cublasLtHandle_t handle, const Product& p, const Operands& operands) {
  const DType in = operands.in, out = operands.out;
  Plan plan;
  plan.handle = handle;
  const bool is_double = in == DType::f64;
  check_blas(cublasLtMatmulDescCreate(&plan.operation, is_double ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F, is_double ? CUDA_R_64F : CUDA_R_32F), p,
             "setup");
  const cublasOperation_t first = p.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N, second = p.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N;
  check_blas(cublasLtMatmulDescSetAttribute(plan.operation, CUBLASLT_MATMUL_DESC_TRANSA, &first, sizeof(first)), p, "setup");
  check_blas(cublasLtMatmulDescSetAttribute(plan.operation, CUBLASLT_MATMUL_DESC_TRANSB, &second, sizeof(second)), p, "setup");
  const auto layout = [&](cublasLtMatrixLayout_t& to, DType dtype, int64_t rows, int64_t cols) {
    check_blas(cublasLtMatrixLayoutCreate(&to, data_type(dtype), cols, rows, cols), p, "setup");
  };
  layout(plan.a, in, p.transpose_b ? p.n : p.k, p.transpose_b ? p.k : p.n);
  layout(plan.b, in, p.transpose_a ? p.k : p.m, p.transpose_a ? p.m : p.k);
  layout(plan.c, out, p.m, p.n);
  cublasLtMatmulPreference_t preference;
  check_blas(cublasLtMatmulPreferenceCreate(&preference), p, "setup");
  const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t what, const auto& value) {
    check_blas(cublasLtMatmulPreferenceSetAttribute(preference, what, &value, sizeof(value)), p, "setup");
  };
  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkspaceBytes);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, operands.align_b);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, operands.align_a);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, operands.align_c);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, operands.align_c);
  std::array<cublasLtMatmulHeuristicResult_t, kCandidates> candidates;
  int found = 0;
  const cublasStatus_t status =
      cublasLtMatmulAlgoGetHeuristic(handle, plan.operation, plan.a, plan.b, plan.c, plan.c, preference, kCandidates, candidates.data(), &found);
  cublasLtMatmulPreferenceDestroy(preference);
  check_blas(status, p, "heuristic");
  BRAID_CHECK(found > 0, "cuda: cuBLASLt has no algorithm for a product [", p.m, ", ", p.k, "] x [", p.k, ", ", p.n, "] of ", in);
  plan.algorithm = choose({candidates.data(), static_cast<size_t>(found)}, p.k).algo;
  return plan;
}

class Products {
 public:
  /// A plan for some product, thrown away: what cuBLASLt sets up for the first one is set up.
  void prepare(int device_index) {
    std::lock_guard lock(mutex_);
    const Product some{.transpose_b = true, .m = 4096, .n = 2048, .k = 2048};
    make_plan(handle_of(device_index, some), some, {DType::bf16, DType::bf16, 256, 256, 256});
  }
  void run(Context& ctx, const Product& p, const Tensor& a, const Tensor& b, const Tensor& c) {
    const auto [plan, workspace] = plan_for(ctx, p, {a.dtype(), c.dtype(), alignment_of(a), alignment_of(b), alignment_of(c)});
    const float one = 1, beta = p.add ? 1 : 0;
    const double one_wide = 1, beta_wide = p.add ? 1 : 0;
    const bool is_double = a.dtype() == DType::f64;
    check_blas(cublasLtMatmul(plan.handle, plan.operation, is_double ? static_cast<const void*>(&one_wide) : &one, b.raw(), plan.a, a.raw(), plan.b,
                              is_double ? static_cast<const void*>(&beta_wide) : &beta, c.raw(), plan.c, c.raw(), plan.c, &plan.algorithm,
                              workspace.raw(), kWorkspaceBytes, native(ctx.stream())),
               p, "start");
  }

 private:
  std::pair<Plan, Tensor> plan_for(Context& ctx, const Product& p, const Operands& operands) {
    std::lock_guard lock(mutex_);
    const Key key{ctx.device().index, p.transpose_a, p.transpose_b, p.add, p.m, p.n, p.k, operands};
    auto found = plans_.find(key);
    if (found == plans_.end()) {
      native(ctx.stream());  // makes its device the current one
      found = plans_.emplace(key, make_plan(handle_of(ctx.device().index, p), p, operands)).first;
    }
    return {found->second, workspace_of(ctx)};
  }

  /// One for each device, which must be the current one.
  cublasLtHandle_t handle_of(int device_index, const Product& p) {
    cublasLtHandle_t& handle = handles_[device_index];
    if (!handle) check_blas(cublasLtCreate(&handle), p, "cublasLtCreate");
    return handle;
  }

  /// One for each of the last few streams: products of one stream follow each other and may share it.
  Tensor workspace_of(Context& ctx) {
    const auto same = [&](const auto& entry) { return entry.first == ctx.stream().native(); };
    if (const auto found = std::find_if(workspaces_.begin(), workspaces_.end(), same); found != workspaces_.end()) return found->second;
    constexpr size_t kMostStreams = 4;
    if (workspaces_.size() == kMostStreams) workspaces_.erase(workspaces_.begin());
    const WithOwner owner("workspace of products");
    const auto bytes = static_cast<int64_t>(kWorkspaceBytes);
    return workspaces_.emplace_back(ctx.stream().native(), Tensor::empty(ctx, {bytes}, DType::u8)).second;
  }

  std::mutex mutex_;
  std::map<int, cublasLtHandle_t> handles_;
  std::vector<std::pair<void*, Tensor>> workspaces_;
  std::map<Key, Plan> plans_;  // shapes of a run are few; plans live as long as the process
};

Products& products() {
  static Products* all = new Products;
  return *all;
}

}  // namespace

void prepare_products(int device_index) {
  // Ends before the program does: nothing may use the driver after that.
  static const std::jthread preparation([device_index] {
    try {
      check(cudaSetDevice(device_index), "cudaSetDevice");
      products().prepare(device_index);
    } catch (const Error&) {  // the first product will say so
    }
  });
}

void multiply(Context& ctx, const Product& product, const Tensor& a, const Tensor& b, const Tensor& c) {
  BRAID_CHECK(a.dtype() == b.dtype() && (c.dtype() == a.dtype() || c.dtype() == DType::f32), "cuda: a product of ", a.dtype(), " and ", b.dtype(),
              " into ", c.dtype(), " is not built");
  if (product.m == 0 || product.n == 0) return;
  if (product.k == 0) {
    if (!product.add) fill_zero(ctx, c);
    return;
  }
  products().run(ctx, product, a, b, c);
}

}  // namespace braid::cuda
