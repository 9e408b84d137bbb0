// A model as training and evaluation see it: what turns a batch into a loss.
#pragma once
#include <functional>

#include "models/hybrid_lm.h"
#include "train/batch.h"

namespace braid {

/// Records on the context's tape when there is one. options.recompute… are for models that offer it.
using ScoreFunction = std::function<LossOutput(Context&, const Batch&, const LossOptions&)>;

/// The language model's own loss. `model` must outlive the function.
ScoreFunction score_with(const HybridLm& model);

}  // namespace braid
