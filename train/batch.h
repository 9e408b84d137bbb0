// What a training step consumes, where it comes from, and what turns it into a loss.
#pragma once
#include <functional>
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

/// What a model says about a batch.
struct Scores {
  Tensor loss;        // [], sum over targets of the cross-entropy / denominator
  Tensor token_loss;  // [N], 0 where there is no target
  Tensor prediction;  // i64 [N], the likeliest next token; undefined unless asked for
};
struct ScoreOptions {
  double denominator = 0;  // 0: the batch's number of targets
  bool predict = false;
};
/// A model as training and evaluation see it. Records on the context's tape when there is one.
using ScoreFunction = std::function<Scores(Context&, const Batch&, const ScoreOptions&)>;

}  // namespace braid
