#include "cuda/runtime/arena.h"

#include <algorithm>

#include "cuda/runtime/check.h"

namespace braid::cuda {
namespace {

constexpr size_t kAlignment = 256, kChunk = 64 << 20;

size_t rounded(size_t bytes) { return std::max((bytes + kAlignment - 1) / kAlignment, size_t{1}) * kAlignment; }

}  // namespace

Arena::~Arena() {
  for (const Chunk& chunk : chunks_) cudaFree(chunk.data);
}

void* Arena::allocate(size_t bytes) {
  const size_t size = rounded(bytes);
  if (const auto found = free_.find(size); found != free_.end()) {
    void* pointer = found->second;
    free_.erase(found);
    return pointer;
  }
  if (chunks_.empty() || chunks_.back().used + size > chunks_.back().capacity) {
    void* data = nullptr;
    const size_t capacity = std::max(size, kChunk);
    check(cudaMalloc(&data, capacity), "cudaMalloc of memory for a graph");
    chunks_.push_back({static_cast<std::byte*>(data), capacity, 0});
  }
  Chunk& chunk = chunks_.back();
  void* pointer = chunk.data + chunk.used;
  chunk.used += size;
  return pointer;
}

void Arena::release(void* pointer, size_t bytes) { free_.emplace(rounded(bytes), pointer); }

bool Arena::owns(const void* pointer) const {
  const auto* at = static_cast<const std::byte*>(pointer);
  return std::any_of(chunks_.begin(), chunks_.end(), [&](const Chunk& chunk) { return at >= chunk.data && at < chunk.data + chunk.capacity; });
}

size_t Arena::size_bytes() const {
  size_t total = 0;
  for (const Chunk& chunk : chunks_) total += chunk.capacity;
  return total;
}

}  // namespace braid::cuda
