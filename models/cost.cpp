#include "models/cost.h"

#include <algorithm>

#include "core/error.h"
#include "models/hybrid_lm.h"

namespace braid {
namespace {

constexpr double kTrainingOverForward = 3;  // backward makes two gradients for each product
constexpr int64_t kStateBytes = 4, kCacheBytes = 2;

/// Tokens that the queries of a sequence see, all together.
double total_span(int64_t length, int64_t window) {
  const auto t = static_cast<double>(length);
  if (window == 0 || window >= length) return t * (t + 1) / 2;
  const auto w = static_cast<double>(window);
  return w * (w + 1) / 2 + (t - w) * w;
}

void add_attention(ModelCost& cost, double flops_per_span, int64_t window, int64_t context) {
  cost.attention_flops_per_token += flops_per_span * total_span(context, window) / static_cast<double>(context);
  for (ModelCost::Attention& layers : cost.attention)
    if (layers.window == window) {
      layers.flops_per_span += flops_per_span;
      return;
    }
  cost.attention.push_back({window, flops_per_span});
}

}  // namespace

double ModelCost::flops(const Sequences& seqs) const {
  double total = (matmul_flops_per_token + recurrence_flops_per_token) * static_cast<double>(seqs.num_tokens());
  for (const Attention& layers : attention)
    for (int64_t s = 0; s < seqs.count(); ++s) total += layers.flops_per_span * total_span(seqs.length(s), layers.window);
  return total;
}

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
    if (mixer.attention_flops_per_span > 0) add_attention(cost, kTrainingOverForward * mixer.attention_flops_per_span, mixer.window, context);
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
