// Synthetic recall tasks, generated on the fly from a seed.
#pragma once
#include <memory>
#include <vector>

#include "core/random.h"
#include "train/batch.h"

namespace braid {

enum class Split : uint8_t { train, test };

/// Tokens of one sequence and the answer expected after each of them (−1: none).
struct RecallExample {
  std::vector<int64_t> tokens, targets;
  uint64_t content = 0;  // hash of what is to be recalled, whatever its order and surroundings
};

/// Example `index` of a split is a pure function of (seed, split, index). Train and test are disjoint by content, not only by seed: an
/// example whose content hash falls into one class of kNumClasses is only ever a test example, all others only training examples.
class RecallTask {
 public:
  static constexpr uint64_t kNumClasses = 8;

  explicit RecallTask(uint64_t seed) : seed_(seed) {}
  virtual ~RecallTask() = default;
  virtual std::string_view name() const = 0;
  virtual int64_t vocab_size() const = 0;
  virtual int64_t sequence_length() const = 0;
  /// Accuracy of guessing blindly among the possible answers.
  virtual double chance() const = 0;

  /// Throws Error when the task is so small that the split holds (nearly) nothing.
  RecallExample example(Split split, uint64_t index) const;
  /// Examples first, …, first + count − 1, packed.
  Batch batch(Context& ctx, Split split, uint64_t first, int64_t count) const;
  uint64_t seed() const { return seed_; }
  static Split split_of(uint64_t content) { return content % kNumClasses == 0 ? Split::test : Split::train; }

 protected:
  virtual RecallExample draw(Random& random) const = 0;

 private:
  uint64_t seed_;
};

/// Multi-query associative recall: key-value pairs, `gap` fillers, then queries, each a key followed by its value:
///   k1 v1 k2 v2 … (fillers) q1 a1 q2 a2 …      target after q_i: a_i, no other
/// Keys are distinct within an example, values are drawn independently; queries run through the pairs in random order (again and
/// again when there are more queries than pairs). Tokens: keys 0 …, then values, then one filler. A `length` above the least
/// possible puts the rest as fillers at random places before queries. Content: the set of pairs.
/// Source: Arora et al., "Zoology: measuring and improving recall in efficient language models", ICLR 2024.
struct AssociativeRecallOptions {
  int64_t num_pairs = 8;
  int64_t num_keys = 16;
  int64_t num_values = 16;
  int64_t num_queries = 8;
  int64_t gap = 0;
  int64_t length = 0;  // 0: 2 · num_pairs + gap + 2 · num_queries
};
std::unique_ptr<RecallTask> make_associative_recall(const AssociativeRecallOptions& options, uint64_t seed);

/// A text of `length` random letters out of `alphabet`, a bar, and the text again; bytes. Targets: the second text. Content: the text.
struct CopyOptions {
  int64_t length = 16;
  int64_t alphabet = 26;  // 2 … 26
};
std::unique_ptr<RecallTask> make_copy_task(const CopyOptions& options, uint64_t seed);

/// Numbers hidden in a text, in bytes: `num_needles` sentences "the code of NAME is 4711." at random places among sentences of everyday
/// words, `length` bytes in all, ending with "the code of NAME is 4711". Targets: the digits of the last. Content: the needles.
struct NeedleOptions {
  int64_t length = 256;
  int64_t num_needles = 1;  // 1 … 16
  int64_t num_digits = 4;   // 1 … 9
};
std::unique_ptr<RecallTask> make_needle_task(const NeedleOptions& options, uint64_t seed);

/// Training batches of `examples_per_batch` examples a step, over all ranks. Rank r of R takes the r-th part.
class RecallSource final : public BatchSource {
 public:
  /// `task` must outlive this. Throws Error unless the examples share out evenly.
  RecallSource(const RecallTask& task, int64_t examples_per_batch, const BatchShare& share = {});
  StepBatch next(Context& ctx) override;
  DataPosition position() const override;
  void restore(const DataPosition& position) override;

 private:
  uint64_t fingerprint() const;
  const RecallTask& task_;
  int64_t examples_per_batch_;
  BatchShare share_;
  int64_t drawn_ = 0;
};

}  // namespace braid
