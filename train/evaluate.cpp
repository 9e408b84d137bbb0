#include "train/evaluate.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace braid {
namespace {

/// Σ token_loss, in double and in order.
double total_loss(Context& ctx, const LossOutput& output) {
  double total = 0;
  for (double loss : to_vector<double>(ctx, output.token_loss)) total += loss;
  return total;
}

}  // namespace

double TextScore::perplexity() const { return std::exp(loss()); }
double TextScore::bits_per_byte(double bytes_per_target) const { return loss() / std::numbers::ln2 / bytes_per_target; }

TextScore evaluate_text(Context& ctx, const ScoreFunction& score, const TokenSource& data, int64_t context, int64_t batch_tokens,
                        int64_t max_tokens) {
  BRAID_CHECK(context >= 1 && batch_tokens >= 1, "evaluate: context and batch tokens must be positive, got ", context, " and ", batch_tokens);
  WithTape silent(ctx, nullptr);
  const int64_t step = std::max<int64_t>(1, batch_tokens / context) * context;
  const int64_t stop = max_tokens > 0 ? std::min(max_tokens, data.num_tokens()) : data.num_tokens();
  TextScore result;
  for (int64_t begin = 0; begin < stop; begin += step) {
    const Batch batch = read_rows(ctx, data, begin, std::min(begin + step, stop), context);
    result.negative_log_likelihood += total_loss(ctx, score(ctx, batch, {}));
    result.num_tokens += batch.sequences.num_tokens();
    result.num_targets += batch.num_targets;
  }
  return result;
}

RecallScore evaluate_recall(Context& ctx, const ScoreFunction& score, const RecallTask& task, int64_t num_examples, int64_t examples_per_batch,
                            Split split) {
  BRAID_CHECK(num_examples >= 1 && examples_per_batch >= 1, "evaluate: the number of examples must be positive, got ", num_examples,
              " in batches of ", examples_per_batch);
  WithTape silent(ctx, nullptr);
  RecallScore result;
  for (int64_t first = 0; first < num_examples; first += examples_per_batch) {
    const int64_t count = std::min(examples_per_batch, num_examples - first);
    const Batch batch = task.batch(ctx, split, static_cast<uint64_t>(first), count);
    LossOptions options;
    options.predict = true;
    const LossOutput output = score(ctx, batch, options);
    const std::vector<int64_t> targets = to_vector<int64_t>(ctx, batch.targets), predicted = to_vector<int64_t>(ctx, output.prediction);
    for (size_t i = 0; i < targets.size(); ++i) result.num_correct += targets[i] >= 0 && predicted[i] == targets[i] ? 1 : 0;
    result.negative_log_likelihood += total_loss(ctx, output);
    result.num_answers += batch.num_targets;
    result.num_examples += count;
  }
  return result;
}

}  // namespace braid
