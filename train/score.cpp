#include "train/score.h"

namespace braid {

ScoreFunction score_with(const HybridLm& model) {
  return [&model](Context& ctx, const Batch& batch, const LossOptions& options) {
    return model.loss(ctx, batch.tokens, batch.targets, batch.sequences, options);
  };
}

}  // namespace braid
