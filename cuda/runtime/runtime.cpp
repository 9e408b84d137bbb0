#include "cuda/runtime/runtime.h"

#include <map>
#include <mutex>

#include "cuda/runtime/backend.h"
#include "cuda/runtime/blas.h"
#include "cuda/runtime/check.h"
#include "cuda/runtime/memory.h"
#include "cuda/runtime/usable.h"

namespace braid::cuda {

int num_devices() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  return count;
}

bool has_usable_device() { return has_code_for(0); }

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
  const DeviceFacts& device = facts(index);  // throws when there is no such device
  BRAID_CHECK(has_code_for(index), "cuda:", index, " (", device.name, "): this build has no code for its compute capability ",
              device.compute_capability / 10, ".", device.compute_capability % 10,
              "; configure with -DBRAID_CUDA_ARCHITECTURES=", device.compute_capability);
  check(cudaSetDevice(index), "cudaSetDevice");
  cudaStream_t stream;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
  cudaMemPool_t pool;
  check(cudaDeviceGetDefaultMemPool(&pool, index), "cudaDeviceGetDefaultMemPool");
  uint64_t keep_all = ~uint64_t{0};
  check(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keep_all), "cudaMemPoolSetAttribute");
  set_cuda_backend(&backend());
  set_cuda_transfers(&backend());
  prepare_products(index);
  return Context(Stream({DeviceKind::cuda, index}, stream), std::make_shared<ThreadPool>());
}

MemoryUse memory_use(int index) { return backend().use(index); }
std::vector<HeldBytes> memory_held(int index) { return backend().accounts(index).held(); }
std::vector<HeldBytes> memory_held_at_peak(int index) { return backend().accounts(index).held_at_peak(); }
int64_t most_reserved_bytes(int index) {
  cudaMemPool_t pool;
  uint64_t bytes = 0;
  check(cudaDeviceGetDefaultMemPool(&pool, index), "cudaDeviceGetDefaultMemPool");
  check(cudaMemPoolGetAttribute(pool, cudaMemPoolAttrReservedMemHigh, &bytes), "cudaMemPoolGetAttribute");
  return static_cast<int64_t>(bytes);
}
void reset_peak_memory(int index) { backend().accounts(index).reset_peak(); }

Event::Event() {
  cudaEvent_t event;
  check(cudaEventCreate(&event), "cudaEventCreate");
  native_ = event;
}
Event::~Event() { cudaEventDestroy(static_cast<cudaEvent_t>(native_)); }
void Event::record(Stream stream) { check(cudaEventRecord(static_cast<cudaEvent_t>(native_), native(stream)), "cudaEventRecord"); }
void Event::synchronize() const { check(cudaEventSynchronize(static_cast<cudaEvent_t>(native_)), "cudaEventSynchronize"); }
double Event::elapsed_ms(const Event& begin, const Event& end) {
  float ms = 0;
  check(cudaEventElapsedTime(&ms, static_cast<cudaEvent_t>(begin.native_), static_cast<cudaEvent_t>(end.native_)), "cudaEventElapsedTime");
  return ms;
}

namespace {

/// What a graph's handle stands for: the memory of what it made lives as long.
struct Recording {
  cudaGraphExec_t executable = nullptr;
  std::shared_ptr<Arena> memory;
  ~Recording() {
    if (executable) cudaGraphExecDestroy(executable);
  }
};

}  // namespace

Graph::~Graph() { delete static_cast<Recording*>(executable_); }

void Graph::record(Context& ctx, FunctionRef<void()> body) {
  // Relaxed: the arena may ask the driver for memory while the stream records.
  check(cudaStreamBeginCapture(native(ctx.stream()), cudaStreamCaptureModeRelaxed), "cudaStreamBeginCapture");
  cudaGraph_t graph = nullptr;
  auto recording = std::make_unique<Recording>();
  recording->memory = std::make_shared<Arena>(ctx.device().index, backend().accounts(ctx.device().index));
  backend().begin_arena(ctx.stream(), recording->memory);
  try {
    body();
  } catch (...) {
    backend().end_arena();
    cudaStreamEndCapture(native(ctx.stream()), &graph);
    if (graph) cudaGraphDestroy(graph);
    throw;
  }
  backend().end_arena();
  check(cudaStreamEndCapture(native(ctx.stream()), &graph), "cudaStreamEndCapture");
  const cudaError_t status = cudaGraphInstantiate(&recording->executable, graph, 0);
  cudaGraphDestroy(graph);
  check(status, "cudaGraphInstantiate");
  delete static_cast<Recording*>(executable_);
  executable_ = recording.release();
}

void Graph::replay(Context& ctx) const {
  BRAID_CHECK(executable_, "cuda: a graph must be recorded before it is replayed");
  check(cudaGraphLaunch(static_cast<const Recording*>(executable_)->executable, native(ctx.stream())), "cudaGraphLaunch");
}

}  // namespace braid::cuda
