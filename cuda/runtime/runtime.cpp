#include "cuda/runtime/runtime.h"

#include <algorithm>
#include <deque>
#include <map>
#include <mutex>

#include "cuda/runtime/check.h"
#include "cuda/runtime/convert.h"

namespace braid::cuda {
namespace {

/// Stream-ordered device memory, with counts of what is held.
class CudaBackend final : public DeviceBackend {
 public:
  void* allocate(size_t bytes, Stream stream) override {
    void* pointer = nullptr;
    const cudaError_t status = cudaMallocAsync(&pointer, std::max<size_t>(bytes, 1), native(stream));
    if (status == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      report_out_of_memory(bytes, stream);
    }
    check(status, "cudaMallocAsync");
    std::lock_guard lock(mutex_);
    Use& use = uses_[stream.device().index];
    use.used += static_cast<int64_t>(bytes);
    use.peak = std::max(use.peak, use.used);
    ++use.sizes[bytes];
    return pointer;
  }

  void release(void* pointer, size_t bytes, Stream stream) noexcept override {
    cudaFreeAsync(pointer, native(stream));
    std::lock_guard lock(mutex_);
    Use& use = uses_[stream.device().index];
    use.used -= static_cast<int64_t>(bytes);
    if (--use.sizes[bytes] == 0) use.sizes.erase(bytes);
  }

  void copy(void* to, const void* from, size_t bytes, CopyKind kind, Stream stream) override {
    if (bytes == 0) return;
    const auto native_kind = kind == CopyKind::host_to_device   ? cudaMemcpyHostToDevice
                             : kind == CopyKind::device_to_host ? cudaMemcpyDeviceToHost
                                                                : cudaMemcpyDeviceToDevice;
    check(cudaMemcpyAsync(to, from, bytes, native_kind, native(stream)), "cudaMemcpyAsync");
  }

  void fill(void* to, uint8_t value, size_t bytes, Stream stream) override {
    if (bytes) check(cudaMemsetAsync(to, value, bytes, native(stream)), "cudaMemsetAsync");
  }

  void convert(void* to, DType to_dtype, const void* from, DType from_dtype, int64_t count, bool add, Stream stream) override {
    launch_convert(to, to_dtype, from, from_dtype, count, add, stream);
  }

  void synchronize(Stream stream) override { check(cudaStreamSynchronize(native(stream)), "cudaStreamSynchronize"); }

  MemoryUse use(int index) {
    std::lock_guard lock(mutex_);
    return {uses_[index].used, uses_[index].peak, free_bytes(index)};
  }
  void reset_peak(int index) {
    std::lock_guard lock(mutex_);
    uses_[index].peak = uses_[index].used;
  }

 private:
  struct Use {
    int64_t used = 0, peak = 0;
    std::map<size_t, int64_t> sizes;  // how many live allocations of each size
  };

  static int64_t free_bytes(int index) {
    size_t free = 0, total = 0;
    check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
    cudaMemPool_t pool;
    uint64_t reserved = 0, used = 0;
    check(cudaDeviceGetDefaultMemPool(&pool, index), "cudaDeviceGetDefaultMemPool");
    check(cudaMemPoolGetAttribute(pool, cudaMemPoolAttrReservedMemCurrent, &reserved), "cudaMemPoolGetAttribute");
    check(cudaMemPoolGetAttribute(pool, cudaMemPoolAttrUsedMemCurrent, &used), "cudaMemPoolGetAttribute");
    return static_cast<int64_t>(free + reserved - used);
  }

  [[noreturn]] void report_out_of_memory(size_t bytes, Stream stream) {
    std::lock_guard lock(mutex_);
    const Use& use = uses_[stream.device().index];
    std::vector<std::pair<int64_t, std::string>> holders;
    for (const auto& [size, count] : use.sizes) {
      std::ostringstream line;
      line << count << " x " << size;
      holders.emplace_back(static_cast<int64_t>(size) * count, line.str());
    }
    std::sort(holders.rbegin(), holders.rend());
    std::ostringstream largest;
    for (size_t i = 0; i < std::min<size_t>(5, holders.size()); ++i) largest << (i ? ", " : "") << holders[i].second;
    fail(stream.device(), ": out of memory: asked for ", bytes, " bytes; live tensors hold ", use.used, " (largest: ", largest.str(), "), ",
         free_bytes(stream.device().index), " are free; fewer tokens per micro-batch or more recompute need less");
  }

  std::mutex mutex_;
  std::map<int, Use> uses_;
};

CudaBackend& backend() {
  static CudaBackend* instance = new CudaBackend;  // outlives every tensor, static ones included
  return *instance;
}

}  // namespace

int num_devices() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  return count;
}

const DeviceFacts& facts(int index) {
  static std::mutex mutex;
  static std::map<int, DeviceFacts> known;
  std::lock_guard lock(mutex);
  if (const auto found = known.find(index); found != known.end()) return found->second;
  BRAID_CHECK(index >= 0 && index < num_devices(), "cuda:", index, ": expected a device number below ", num_devices());
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, index), "cudaGetDeviceProperties");
  return known[index] = {.name = properties.name,
                         .num_multiprocessors = properties.multiProcessorCount,
                         .compute_capability = properties.major * 10 + properties.minor,
                         .memory_bytes = static_cast<int64_t>(properties.totalGlobalMem),
                         .l2_bytes = properties.l2CacheSize,
                         .shared_bytes_per_block = static_cast<int64_t>(properties.sharedMemPerBlockOptin)};
}

Context make_context(int index) {
  facts(index);  // throws when there is no such device
  check(cudaSetDevice(index), "cudaSetDevice");
  cudaStream_t stream;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
  cudaMemPool_t pool;
  check(cudaDeviceGetDefaultMemPool(&pool, index), "cudaDeviceGetDefaultMemPool");
  uint64_t keep_all = ~uint64_t{0};
  check(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keep_all), "cudaMemPoolSetAttribute");
  set_cuda_backend(&backend());
  return Context(Stream({DeviceKind::cuda, index}, stream), std::make_shared<ThreadPool>());
}

MemoryUse memory_use(int index) { return backend().use(index); }
void reset_peak_memory(int index) { backend().reset_peak(index); }

Event::Event() {
  cudaEvent_t event;
  check(cudaEventCreate(&event), "cudaEventCreate");
  native_ = event;
}
Event::~Event() { cudaEventDestroy(static_cast<cudaEvent_t>(native_)); }
void Event::record(Stream stream) { check(cudaEventRecord(static_cast<cudaEvent_t>(native_), native(stream)), "cudaEventRecord"); }
void Event::wait_on(Stream stream) const { check(cudaStreamWaitEvent(native(stream), static_cast<cudaEvent_t>(native_), 0), "cudaStreamWaitEvent"); }
void Event::synchronize() const { check(cudaEventSynchronize(static_cast<cudaEvent_t>(native_)), "cudaEventSynchronize"); }
double Event::elapsed_ms(const Event& begin, const Event& end) {
  float ms = 0;
  check(cudaEventElapsedTime(&ms, static_cast<cudaEvent_t>(begin.native_), static_cast<cudaEvent_t>(end.native_)), "cudaEventElapsedTime");
  return ms;
}

Graph::~Graph() {
  if (executable_) cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(executable_));
}

void Graph::record(Context& ctx, FunctionRef<void()> body) {
  check(cudaStreamBeginCapture(native(ctx.stream()), cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
  cudaGraph_t graph = nullptr;
  try {
    body();
  } catch (...) {
    cudaStreamEndCapture(native(ctx.stream()), &graph);
    if (graph) cudaGraphDestroy(graph);
    throw;
  }
  check(cudaStreamEndCapture(native(ctx.stream()), &graph), "cudaStreamEndCapture");
  cudaGraphExec_t executable = nullptr;
  const cudaError_t status = cudaGraphInstantiate(&executable, graph, 0);
  cudaGraphDestroy(graph);
  check(status, "cudaGraphInstantiate");
  if (executable_) cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(executable_));
  executable_ = executable;
}

void Graph::replay(Context& ctx) const {
  BRAID_CHECK(executable_, "cuda: a graph must be recorded before it is replayed");
  check(cudaGraphLaunch(static_cast<cudaGraphExec_t>(executable_), native(ctx.stream())), "cudaGraphLaunch");
}

}  // namespace braid::cuda
