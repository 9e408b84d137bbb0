#include "train/cli/recall_options.h"

namespace braid::cli {

void declare_recall(Options& options, const std::string& help, RecallOptions& to) {
  options.choice("recall", help, to.task, {"mqar", "copy", "needle"});
  options.integer("pairs", "mqar: key-value pairs", to.mqar.num_pairs, 1);
  options.integer("keys", "mqar: different keys", to.mqar.num_keys, 1);
  options.integer("values", "mqar: different values", to.mqar.num_values, 1);
  options.integer("queries", "mqar: queries", to.mqar.num_queries, 1);
  options.integer("gap", "mqar: fillers between pairs and queries", to.mqar.gap);
  options.integer("length", "mqar: tokens in all; 0: as few as possible", to.mqar.length);
  options.integer("copy-length", "copy: letters to repeat", to.copy_length, 1);
  options.integer("needle-length", "needle: bytes of an example", to.needle_length, 1);
  options.integer("needles", "needle: numbers hidden in it", to.needles, 1, 16);
}

std::unique_ptr<RecallTask> make_task(const RecallOptions& options, int64_t seed, int64_t vocab_size) {
  const auto value = static_cast<uint64_t>(seed);
  std::unique_ptr<RecallTask> task;
  if (options.task == "copy") task = make_copy_task({.length = options.copy_length}, value);
  else if (options.task == "needle") task = make_needle_task({.length = options.needle_length, .num_needles = options.needles}, value);
  else task = make_associative_recall(options.mqar, value);
  BRAID_CHECK(task->vocab_size() <= vocab_size, "--recall ", options.task, " needs a vocabulary of at least ", task->vocab_size(),
              ", got a model with ", vocab_size);
  return task;
}

}  // namespace braid::cli
