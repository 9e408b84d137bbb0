// What a training step consumes, and where it comes from.
#pragma once
#include <utility>
#include <vector>

#include "core/sequences.h"

namespace braid {

/// Packed tokens of several sequences and what each token should be followed by.
struct Batch {
  Tensor tokens;   // i64 [N]
  Tensor targets;  // i64 [N]; −1 where there is none
  Sequences sequences;
  int64_t num_targets = 0;  // targets that are not −1
};

/// This rank's part of one step's batch, cut into micro-batches, and the sizes of the whole batch over all ranks.
struct StepBatch {
  std::vector<Batch> micro_batches;
  int64_t num_tokens = 0;
  int64_t num_targets = 0;
};

/// Where a source of batches stands; all of it, so it is saved and restored exactly.
struct DataPosition {
  std::vector<int64_t> drawn;  // rows (or examples) drawn from each data set since the beginning
  uint64_t fingerprint = 0;    // of the data and of every option that decides the order
  friend bool operator==(const DataPosition&, const DataPosition&) = default;
};

/// An endless reproducible sequence of batches. The same for any number of ranks and micro-batches: only the cut differs.
class BatchSource {
 public:
  virtual ~BatchSource() = default;
  virtual StepBatch next(Context& ctx) = 0;
  virtual DataPosition position() const = 0;
  /// Throws Error when the position belongs to other data or another order.
  virtual void restore(const DataPosition& position) = 0;
};

/// How a step's batch is shared out.
struct BatchShare {
  int rank = 0;
  int num_ranks = 1;
  int64_t num_micro_batches = 1;  // per rank
};

/// The units (rows, examples) of a step that this rank's micro-batch `index` holds: [first, second).
std::pair<int64_t, int64_t> micro_batch_range(const BatchShare& share, int64_t num_units, int64_t index);
/// Throws Error, in the name of `who`, unless the units of a step share out evenly and the rank is one of the ranks.
void check_share(std::string_view who, std::string_view units, int64_t num_units, const BatchShare& share);
/// Folds a number into a hash.
uint64_t mixed_hash(uint64_t hash, uint64_t value);

}  // namespace braid
