// Choosing the next token.
#pragma once
#include <vector>

#include "core/random.h"

namespace braid::cli {

struct SamplingOptions {
  double temperature = 1;  // 0: always the likeliest
  int64_t top_k = 0;       // among the k likeliest only; 0: all
  double top_p = 1;        // among the likeliest that together reach this probability
};

/// Draws an index into `logits`; of equals the first counts as likelier. Deterministic in `random`. Throws Error when no logit is finite.
int64_t sample(const std::vector<double>& logits, const SamplingOptions& options, Random& random);

}  // namespace braid::cli
