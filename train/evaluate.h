// Scores of a model on data it was not trained on.
#pragma once
#include "train/data_loader.h"
#include "train/recall.h"
#include "train/score.h"

namespace braid {

struct TextScore {
  int64_t num_tokens = 0;
  int64_t num_targets = 0;
  double negative_log_likelihood = 0;  // nats, summed over targets
  double loss() const { return num_targets ? negative_log_likelihood / static_cast<double>(num_targets) : 0; }
  double perplexity() const;
  /// `bytes_per_target`: 1 for bytes; else bytes of the text over its number of targets.
  double bits_per_byte(double bytes_per_target = 1) const;
};

/// Every token of the data set (or the first `max_tokens`, 0: all) in windows of `context` tokens that know nothing of each other and
/// never span documents; `batch_tokens` at a time, so memory does not depend on the data's size. Nothing is recorded.
TextScore evaluate_text(Context& ctx, const ScoreFunction& score, const TokenSource& data, int64_t context, int64_t batch_tokens,
                        int64_t max_tokens = 0);

struct RecallScore {
  int64_t num_examples = 0;
  int64_t num_answers = 0;
  int64_t num_correct = 0;
  double negative_log_likelihood = 0;  // nats, summed over answers
  double accuracy() const { return num_answers ? static_cast<double>(num_correct) / static_cast<double>(num_answers) : 0; }
  double loss() const { return num_answers ? negative_log_likelihood / static_cast<double>(num_answers) : 0; }
};

/// The first `num_examples` of the task's test split, `examples_per_batch` at a time; accuracy counts answer tokens only.
RecallScore evaluate_recall(Context& ctx, const ScoreFunction& score, const RecallTask& task, int64_t num_examples, int64_t examples_per_batch = 64,
                            Split split = Split::test);

}  // namespace braid
