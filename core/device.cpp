#include "core/device.h"

#include <cstdlib>
#include <cstring>

#include "core/owner.h"
#include "core/storage.h"
#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace braid {
namespace {

/// Host memory: calls are done when they return, so streams do not matter.
class HostBackend final : public DeviceBackend {
 public:
  HostBackend() {
#ifdef __GLIBC__
    // A step frees what the next one asks for again. Handed back to the system in between, every page of it would be zeroed anew: a third of
    // the time of the chunked recurrences. What is freed stays with the process, up to these bytes.
    mallopt(M_MMAP_THRESHOLD, 32 << 20);
    mallopt(M_TRIM_THRESHOLD, 1 << 30);
#endif
  }
  void* allocate(size_t bytes, Stream) override {
    void* pointer = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
    BRAID_CHECK(pointer, "cpu: out of memory: ", current_owner(), " asked for ", bytes, " bytes; ", host_memory().used_bytes,
                " are held by tensors; ", advice_on_memory(false));
    return pointer;
  }
  void release(void* pointer, size_t, Stream) noexcept override { std::free(pointer); }
  void copy(void* to, const void* from, size_t bytes, CopyKind, Stream) override {
    if (bytes) std::memcpy(to, from, bytes);
  }
  void fill(void* to, uint8_t value, size_t bytes, Stream) override {
    if (bytes) std::memset(to, value, bytes);
  }
  void convert(void* to, DType to_dtype, const void* from, DType from_dtype, int64_t count, bool add, Stream) override {
    with_floating(to_dtype, [&](auto to_type) {
      with_floating(from_dtype, [&](auto from_type) {
        convert_range(static_cast<const decltype(from_type)*>(from), static_cast<decltype(to_type)*>(to), count, add);
      });
    });
  }
  void synchronize(Stream) override {}

 private:
  template <class Body>
  static void with_floating(DType dtype, Body&& body) {
    if (dtype == DType::f64) return body(double{});
    if (dtype == DType::f32) return body(float{});
    BRAID_CHECK(dtype == DType::bf16, "convert: expected f64, f32 or bf16, got ", dtype);
    body(bf16{});
  }

  template <class From, class To>
  static void convert_range(const From* from, To* to, int64_t count, bool add) {
    if (add) {
      for (int64_t i = 0; i < count; ++i) to[i] = static_cast<To>(arithmetic(to[i]) + arithmetic(from[i]));
    } else {
      for (int64_t i = 0; i < count; ++i) to[i] = static_cast<To>(arithmetic(from[i]));
    }
  }

  template <class T>
  static auto arithmetic(T value) {
    if constexpr (std::is_same_v<T, bf16>) return static_cast<float>(value);
    else return value;
  }
};

DeviceBackend* cuda_backend = nullptr;

}  // namespace

DeviceBackend& backend_of(Device device) {
  static HostBackend host;
  if (device.kind == DeviceKind::cpu) return host;
  BRAID_CHECK(cuda_backend, device, ": this build or machine has no CUDA device");
  return *cuda_backend;
}

void set_cuda_backend(DeviceBackend* backend) { cuda_backend = backend; }

}  // namespace braid
