// Where the time of one training step goes.
#pragma once
#include <string>
#include <vector>

#include "core/context.h"
#include "models/config.h"

namespace braid::cli {

/// An operator's share of a step, or the optimizer's and the rest's (as forward).
struct StepPart {
  std::string name;
  int64_t num_calls = 0;
  double forward_ms = 0, backward_ms = 0;
};

struct StepTimes {
  double total_ms = 0;
  std::vector<StepPart> parts;  // largest first
  /// Of the operators that are matrix products: linear, matmul, linear_cross_entropy.
  double product_share() const;
};

/// Hidden 512, four layers, a hybrid of the gated delta rule with one layer of attention, bytes.
ModelConfig step_config();

/// The faster of two steps after one to warm up, in float32 on the CPU, on random tokens in sequences of `context`.
StepTimes time_step(Context& ctx, const ModelConfig& config, int64_t batch_tokens, int64_t context);

}  // namespace braid::cli
