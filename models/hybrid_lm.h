// The language model: embedding, blocks of token mixer and MLP, final norm, output head.
//
//   x = embedding(tokens);  per layer: x += mixer(rms_norm(x)), x += mlp(rms_norm(x));  h = rms_norm(x);  logits = h W_head^T
//
// Parameters are named as in flash-linear-attention (design: mixers).
#pragma once
#include <memory>

#include "models/config.h"
#include "models/layers/block.h"
#include "models/state.h"

namespace braid {

/// What is run again in backward instead of being kept: the same bits either way.
enum class RecomputeLevel : uint8_t { none, mlp, block };

struct LossOptions {
  double denominator = 0;  // the sum over tokens is divided by it; 0: by the number of targets (at least 1)
  bool predict = false;    // also give the most likely token of each position
  RecomputeLevel recompute = RecomputeLevel::none;
  int64_t recompute_layers = -1;  // in the first n layers; negative: in all
};

struct LossOutput {
  Tensor loss;        // [] f32 (f64 for f64)
  Tensor token_loss;  // [N] like loss; 0 where there is no target
  Tensor prediction;  // i64 [N]; undefined unless asked for
};

class HybridLm final : public Module {
 public:
  /// Declares the parameters; initialize() or a loader makes their values. Throws Error when the configuration is not sound.
  explicit HybridLm(ModelConfig config);
  const ModelConfig& config() const { return config_; }
  const std::vector<std::unique_ptr<Block>>& blocks() const { return blocks_; }

  /// tokens i64 [N], targets i64 [N] (−1: none). Records on the context's tape, so that backward from `loss` fills the gradients.
  LossOutput loss(Context& ctx, const Tensor& tokens, const Tensor& targets, const Sequences& seqs, const LossOptions& options = {}) const;
  /// Output of the final norm [N, D]. With a state: the tokens go on from it (sequence s of `seqs` is its sequence s; chunks of any length,
  /// none included) and it is updated; without one every sequence starts anew.
  Tensor hidden(Context& ctx, const Tensor& tokens, const Sequences& seqs, State* state = nullptr, const LossOptions& options = {}) const;
  /// hidden [M, D] → logits [M, vocab], in the dtype of `hidden`.
  Tensor logits(Context& ctx, const Tensor& hidden) const;

  /// The embedding, or lm_head when they are not tied.
  const Parameter& head() const { return config_.tie_word_embeddings ? embeddings_ : lm_head_; }

 private:
  ModelConfig config_;
  Parameter embeddings_, lower_bounds_, lm_head_;
  std::vector<std::unique_ptr<Block>> blocks_;
  std::unique_ptr<NormLayer> norm_;
};

/// An empty state for `num_sequences` sequences of this model.
State make_state(const HybridLm& model, Context& ctx, int64_t num_sequences);

/// Target of each token: the next one of its sequence, −1 for the last.
std::vector<int64_t> next_token_targets(const std::vector<int64_t>& tokens, const Sequences& seqs);

}  // namespace braid
