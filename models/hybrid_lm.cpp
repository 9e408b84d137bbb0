#include "models/hybrid_lm.h"

#include "autograd/recompute.h"
#include "ops/embedding.h"
#include "ops/linear.h"
#include "ops/linear_cross_entropy.h"

namespace braid {
namespace {

/// A block as recompute runs it: the stream's two tensors in and out.
struct RunBlock {
  const Block* block;
  Sequences seqs;
  std::vector<Tensor> operator()(Context& ctx, const std::vector<Tensor>& inputs) const {
    const ResidualStream stream = (*block)(ctx, {inputs[0], inputs[1]}, {{}, seqs});
    return {stream.x, stream.update};
  }
};

/// All that a mixer is given but its x.
MixerInput input_of(const Sequences& seqs, State* state, int64_t layer) {
  if (!state) return {{}, seqs};
  return {{}, seqs, &state->layers[layer], &state->positions, state->device_positions};
}

void check_tokens(const Tensor& tokens, std::string_view argument, const Sequences& seqs) {
  BRAID_CHECK(tokens && tokens.rank() == 1 && tokens.dtype() == DType::i64, "hybrid_lm: ", argument, " must be i64 [N], got ",
              tokens ? to_string(tokens.dtype()) : "nothing", " ", tokens.shape());
  seqs.require_tokens("hybrid_lm", argument, tokens.size(0));
}

}  // namespace

HybridLm::HybridLm(ModelConfig config) : config_(completed(std::move(config))) {
  const int64_t D = config_.hidden_size;
  declare(embeddings_, "model.embeddings.weight", {config_.vocab_size, D});
  const bool is_hgrn = config_.family == Family::hgrn || config_.family == Family::hgrn2;
  if (is_hgrn && config_.use_lower_bound) declare(lower_bounds_, "model.lower_bounds", {config_.num_hidden_layers, D}, Init::zeros);
  for (int64_t i = 0; i < config_.num_hidden_layers; ++i) {
    blocks_.push_back(std::make_unique<Block>(config_, i, lower_bounds_));
    adopt(*blocks_.back());
  }
  norm_ = std::make_unique<NormLayer>("model.norm", D, config_.norm_eps);
  adopt(*norm_);
  if (!config_.tie_word_embeddings) declare(lm_head_, "lm_head.weight", {config_.vocab_size, D});
}

Tensor HybridLm::hidden(Context& ctx, const Tensor& tokens, const Sequences& seqs, State* state, const LossOptions& options) const {
  check_tokens(tokens, "tokens", seqs);
  if (state) {
    BRAID_CHECK(state->num_sequences() == seqs.count() && state->layers.size() == blocks_.size(), "hybrid_lm: state must have ", seqs.count(),
                " sequences and ", blocks_.size(), " layers, got ", state->num_sequences(), " and ", state->layers.size());
    BRAID_CHECK(!ctx.tape, "hybrid_lm: a state carries no gradient; run without a tape to decode");
  }
  ResidualStream stream{apply<Embedding>(ctx, {tokens, embeddings_.use(ctx)}).y, {}};
  const auto num_blocks = static_cast<int64_t>(blocks_.size());
  const int64_t recomputed = options.recompute_layers < 0 ? num_blocks : options.recompute_layers;
  for (int64_t i = 0; i < num_blocks; ++i) {
    const RecomputeLevel level = i < recomputed ? options.recompute : RecomputeLevel::none;
    const Block& block = *blocks_[i];
    if (level == RecomputeLevel::block && !state) {
      const std::vector<Tensor> after = recompute(ctx, RunBlock{&block, seqs}, {stream.x, stream.update});
      stream = {after[0], after[1]};
    } else stream = block(ctx, stream, input_of(seqs, state, i), level == RecomputeLevel::mlp);
  }
  if (state && !state->device_positions)
    for (int64_t s = 0; s < seqs.count(); ++s) state->positions[s] += seqs.length(s);
  return norm_->add(ctx, stream.x, stream.update).y;
}

Tensor HybridLm::logits(Context& ctx, const Tensor& hidden) const { return apply<Linear>(ctx, {hidden, head().use(ctx), {}}).y; }

LossOutput HybridLm::loss(Context& ctx, const Tensor& tokens, const Tensor& targets, const Sequences& seqs, const LossOptions& options) const {
  check_tokens(targets, "targets", seqs);
  const Tensor x = hidden(ctx, tokens, seqs, nullptr, options);
  auto out = apply<LinearCrossEntropy>(ctx, {x, head().use(ctx), targets}, {options.denominator, options.predict});
  return {out.loss, out.token_loss, out.prediction};
}

State make_state(const HybridLm& model, Context&, int64_t num_sequences) {
  BRAID_CHECK(num_sequences >= 0, "make_state: the number of sequences must not be negative, got ", num_sequences);
  return State(model.config().num_hidden_layers, num_sequences);
}

std::vector<int64_t> next_token_targets(const std::vector<int64_t>& tokens, const Sequences& seqs) {
  seqs.require_tokens("next_token_targets", "tokens", static_cast<int64_t>(tokens.size()));
  std::vector<int64_t> targets(tokens.size(), -1);
  for (int64_t s = 0; s < seqs.count(); ++s)
    for (int64_t i = seqs.begin(s); i + 1 < seqs.end(s); ++i) targets[i] = tokens[i + 1];
  return targets;
}

}  // namespace braid
