#include "models/cost.h"

#include <algorithm>

#include "core/error.h"
#include "models/hybrid_lm.h"

namespace braid {
namespace {

constexpr double kTrainingOverForward = 3;  // backward makes two gradients for each product
constexpr int64_t kStateBytes = 4, kCacheBytes = 2;

/// Tokens that a query sees, on average over sequences of `context` tokens.
double mean_span(int64_t context, int64_t window) {
  const auto t = static_cast<double>(context);
  if (window == 0 || window >= context) return (t + 1) / 2;
  const auto w = static_cast<double>(window);
  return (w * (w + 1) / 2 + (t - w) * w) / t;
}

}  // namespace

ModelCost model_cost(const ModelConfig& config, int64_t context) {
  const HybridLm model(config);
  BRAID_CHECK(context >= 0, "model_cost: context must not be negative, got ", context);
  if (context == 0) context = model.config().max_position_embeddings;
  ModelCost cost;
  const int64_t head = model.config().vocab_size * model.config().hidden_size;
  int64_t multiplied = head;
  for (const Parameter* parameter : model.parameters()) {
    cost.parameters += parameter->shape.numel();
    const bool is_vocab = parameter->name == "model.embeddings.weight" || parameter->name == "lm_head.weight";
    if (is_vocab) cost.embedding_parameters += parameter->shape.numel();
    else if (parameter->shape.rank() == 2 && parameter->init == Init::normal) multiplied += parameter->shape.numel();
  }
  cost.matmul_flops_per_token = kTrainingOverForward * 2 * static_cast<double>(multiplied);
  bool all_windows = true;
  for (const auto& block : model.blocks()) {
    const MixerCost mixer = block->mixer().cost();
    cost.recurrence_flops_per_token += kTrainingOverForward * mixer.recurrence_flops;
    cost.attention_flops_per_token += kTrainingOverForward * mixer.attention_flops_per_span * mean_span(context, mixer.window);
    cost.state_bytes_per_sequence += kStateBytes * mixer.state_elements;
    cost.kv_bytes_per_token += kCacheBytes * mixer.kv_elements;
    if (mixer.kv_elements > 0) {
      all_windows &= mixer.window > 0;
      cost.kv_window = std::max(cost.kv_window, mixer.window);
    }
  }
  if (!all_windows) cost.kv_window = 0;
  return cost;
}

}  // namespace braid
