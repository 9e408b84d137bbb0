#include "train/cli/sampling.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/error.h"

namespace braid::cli {

int64_t sample(const std::vector<double>& logits, const SamplingOptions& options, Random& random) {
  if (options.temperature == 0) {  // no need to sort: the largest, the first of equals
    int64_t best = -1;
    for (size_t i = 0; i < logits.size(); ++i)
      if (std::isfinite(logits[i]) && (best < 0 || logits[i] > logits[best])) best = static_cast<int64_t>(i);
    if (best >= 0) return best;
  }
  std::vector<int64_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::erase_if(order, [&](int64_t i) { return !std::isfinite(logits[i]); });
  BRAID_CHECK(!order.empty(), "sampling: expected a finite logit, got none; the model's parameters may hold NaN");
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return logits[a] > logits[b]; });
  if (options.top_k > 0 && options.top_k < static_cast<int64_t>(order.size())) order.resize(options.top_k);
  std::vector<double> weights;
  for (const int64_t i : order) weights.push_back(std::exp((logits[i] - logits[order.front()]) / options.temperature));
  const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
  double kept = 0;
  size_t count = 0;
  while (count < weights.size() && (count == 0 || kept < options.top_p * total)) kept += weights[count++];
  double left = random.uniform() * kept;
  for (size_t i = 0; i < count; ++i) {
    left -= weights[i];
    if (left < 0) return order[i];
  }
  return order[count - 1];
}

}  // namespace braid::cli
