#include "cuda/runtime/arena.h"

#include <algorithm>

#include "core/memory_accounts.h"
#include "core/owner.h"
#include "cuda/runtime/backend.h"
#include "cuda/runtime/check.h"

namespace braid::cuda {
namespace {

constexpr size_t kAlignment = 256, kChunk = 64 << 20;
constexpr std::string_view kOwner = "recorded graph";

size_t rounded(size_t bytes) { return std::max((bytes + kAlignment - 1) / kAlignment, size_t{1}) * kAlignment; }

}  // namespace

Arena::~Arena() {
  for (const Chunk& chunk : chunks_) {
    accounts_.remove(chunk.data);
    cudaFree(chunk.data);
  }
}

std::byte* Arena::new_chunk(size_t capacity) {
  void* data = nullptr;
  const cudaError_t status = cudaMalloc(&data, capacity);
  if (status == cudaErrorMemoryAllocation)
    fail_out_of_memory(device_idx_, "a recorded graph (" + std::string(current_owner()) + ")", capacity, accounts_);
  check(status, "cudaMalloc of memory for a graph");
  accounts_.add(data, static_cast<int64_t>(capacity), kOwner);
  return static_cast<std::byte*>(data);
}

void* Arena::allocate(size_t bytes) {
  const size_t size = rounded(bytes);
  if (const auto found = free_.find(size); found != free_.end()) {
    void* pointer = found->second;
    free_.erase(found);
    return pointer;
  }
  if (chunks_.empty() || chunks_.back().used + size > chunks_.back().capacity) {
    const size_t capacity = std::max(size, kChunk);
    chunks_.push_back({new_chunk(capacity), capacity, 0});
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
