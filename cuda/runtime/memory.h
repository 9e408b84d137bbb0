// Accounts of a GPU's memory.
#pragma once
#include <cstdint>
#include <vector>

#include "core/memory_accounts.h"

namespace braid::cuda {

/// Who holds how much, largest first: now, and when most was held (since the last reset_peak_memory). Owners: core/owner.h.
std::vector<HeldBytes> memory_held(int index = 0);
std::vector<HeldBytes> memory_held_at_peak(int index = 0);

/// The most that the pool ever took from the device: what tensors held at once, and the gaps between them.
int64_t most_reserved_bytes(int index = 0);

}  // namespace braid::cuda
