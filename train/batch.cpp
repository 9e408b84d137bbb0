#include "train/batch.h"

#include "core/random.h"

namespace braid {

std::pair<int64_t, int64_t> micro_batch_range(const BatchShare& share, int64_t num_units, int64_t index) {
  const int64_t size = num_units / (share.num_ranks * share.num_micro_batches);
  const int64_t begin = (share.rank * share.num_micro_batches + index) * size;
  return {begin, begin + size};
}

void check_share(std::string_view who, std::string_view units, int64_t num_units, const BatchShare& share) {
  BRAID_CHECK(share.num_ranks >= 1 && share.rank >= 0 && share.rank < share.num_ranks, who, ": the rank must be in [0, ", share.num_ranks, "), got ",
              share.rank);
  BRAID_CHECK(share.num_micro_batches >= 1, who, ": the number of micro-batches must be at least 1, got ", share.num_micro_batches);
  const int64_t parts = share.num_ranks * share.num_micro_batches;
  BRAID_CHECK(num_units >= 1 && num_units % parts == 0, who, ": the ", units, " must share out evenly over ", share.num_ranks, " ranks × ",
              share.num_micro_batches, " micro-batches, got ", num_units);
}

uint64_t mixed_hash(uint64_t hash, uint64_t value) {
  const auto words = philox(hash, value, 0);
  return uint64_t{words[0]} << 32 | words[1];
}

}  // namespace braid
