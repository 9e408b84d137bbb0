// Memory for tensors made while a graph is recorded: a replay finds them where the recording left them.
#pragma once
#include <cstddef>
#include <map>
#include <vector>

namespace braid {
class MemoryAccounts;
}

namespace braid::cuda {

/// Chunks of device memory handed out piece by piece. A piece given back is handed out again for the same size: all users are on one stream, in
/// the order in which they asked.
class Arena {
 public:
  /// Memory of the current device, counted in its accounts (which must outlive the arena) as "recorded graph".
  Arena(int device_idx, MemoryAccounts& accounts) : device_idx_(device_idx), accounts_(accounts) {}
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  /// Throws Error, as the backend does, when memory runs out.
  void* allocate(size_t bytes);
  void release(void* pointer, size_t bytes);
  bool owns(const void* pointer) const;
  size_t size_bytes() const;

 private:
  struct Chunk {
    std::byte* data;
    size_t capacity, used;
  };
  std::byte* new_chunk(size_t capacity);

  int device_idx_;
  MemoryAccounts& accounts_;
  std::vector<Chunk> chunks_;
  std::multimap<size_t, void*> free_;  // by rounded size
};

}  // namespace braid::cuda
