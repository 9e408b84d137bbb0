// The paper's question, asked of a grid of small models: how does recall change with the share of full-attention layers?
//
// Every point of the grid (family × ratio × seed) is one architecture trained twice from the same first values: on associative
// recall (recall.h, loss at the answers only) and on text in bytes. All models of a study have the same depth, width and, by the
// choice of their MLP's width, the same number of parameters up to a few per cent; they see the same tokens in the same order.
// Source of the question: "A Systematic Analysis of Hybrid Linear Attention", arXiv 2507.06457.
#pragma once
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "models/cost.h"
#include "train/data_loader.h"
#include "train/recall.h"

namespace braid {

struct StudyOptions {
  std::string name = "quickstart";
  std::vector<Family> families = {Family::gla, Family::delta_net};
  std::vector<std::string> ratios = {"pure", "6-1", "3-1"};  // one full-attention layer in every R
  bool transformer = true;                                   // the baseline with attention in every layer
  std::vector<int64_t> seeds = {1, 2};

  int64_t num_layers = 6;
  int64_t hidden_size = 64;
  int64_t num_heads = 4;   // of mixers and of attention
  int64_t key_dim = 4;     // of a mixer's head: the state of a head is key_dim × hidden_size / num_heads
  int64_t mlp_width = 64;  // of the Transformer; the others' is chosen to match its parameters
  int64_t vocab_size = 256;

  AssociativeRecallOptions recall{.num_pairs = 12};  // eight are learned by some seeds of pure GLA and not by others
  int64_t recall_steps = 500;
  int64_t recall_examples = 64;  // sequences a step
  double recall_learning_rate = 3e-3;
  int64_t recall_test_examples = 512;

  int64_t text_steps = 150;
  int64_t text_batch_tokens = 2048;
  int64_t text_context = 256;
  double text_learning_rate = 3e-3;
  int64_t text_val_tokens = 1 << 16;

  int64_t jobs = 2;  // runs trained at the same time, one thread each
};

/// "quickstart": two families, pure, 6-1 and 3-1, and the Transformer, two seeds: minutes on two cores. "smoke": the same in seconds, to
/// test the machinery; its numbers mean nothing. Throws Error for another name.
StudyOptions study_preset(std::string_view name);
/// A study from JSON: {"preset": …, and any member of StudyOptions by its name}. Throws Error that names a key it does not know.
StudyOptions parse_study(const nlohmann::json& json);
/// Throws Error that names the first option out of range.
void check_study(const StudyOptions& options);

struct LossPoint {
  int64_t tokens;
  double loss;  // mean over the steps since the last point, nats per target
};

/// One trained point of the grid.
struct StudyRun {
  std::string family, ratio;
  int64_t seed = 0;
  int64_t full_attention_layers = 0, num_layers = 0;
  ModelCost cost;
  int64_t tokens = 0;  // seen in training, both tasks together
  double train_seconds = 0;
  double recall_accuracy = 0, recall_loss = 0;
  double bits_per_byte = 0;
  std::vector<LossPoint> recall_curve, text_curve;
};

struct StudyResult {
  StudyOptions options;
  double recall_chance = 0;
  std::vector<StudyRun> runs;  // in the order of the grid
};

/// The architecture of one point of the grid.
ModelConfig study_model(const StudyOptions& options, Family family, const std::string& ratio);

/// Text to learn and text to be scored on.
struct StudyText {
  std::shared_ptr<const TokenSource> train, validation;
};
/// The bytes of every file (.h .cpp .cu .md .sh .txt) named or below a directory named, in the order of their paths; every tenth is for
/// validation. Throws Error when there is too little.
StudyText read_study_text(const std::vector<std::string>& paths);

/// Told of each step ("gla 3-1 seed 1: recall step 100 of 600, loss 1.2") and each finished run; calls do not overlap.
struct StudyObserver {
  std::function<void(const std::string&)> on_progress;
  std::function<void(const StudyResult&)> on_run;  // the finished runs so far
};

/// Where a run of a study is trained: called by each thread for each of its models.
using StudyDevice = std::function<Context()>;

/// Trains and scores the whole grid, on one CPU thread a run where no `device` is given. Stops early, with the runs that are done, when
/// interrupted().
StudyResult run_study(const StudyOptions& options, const StudyText& text, const StudyObserver& observer, const StudyDevice& device = {});

}  // namespace braid
