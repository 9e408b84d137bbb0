// The options that describe a recall task, shared by train and eval.
#pragma once
#include <memory>

#include "train/cli/options.h"
#include "train/recall.h"

namespace braid::cli {

struct RecallOptions {
  std::string task;  // mqar, copy or needle; empty: none was asked for
  AssociativeRecallOptions mqar;
  int64_t copy_length = 16, needle_length = 256, needles = 1;
};

/// --recall and the sizes of each task.
void declare_recall(Options& options, const std::string& help, RecallOptions& to);

/// The task; its examples are a function of `seed`. Throws Error, naming --recall, when it needs more tokens than `vocab_size`.
std::unique_ptr<RecallTask> make_task(const RecallOptions& options, int64_t seed, int64_t vocab_size);

}  // namespace braid::cli
