// What a model costs, from its configuration alone.
#pragma once
#include <cstdint>
#include <vector>

#include "core/sequences.h"
#include "models/config.h"

namespace braid {

/// Training: forward and backward, which is three times the forward; a multiply-add counts as two.
struct ModelCost {
  int64_t parameters = 0;
  int64_t embedding_parameters = 0;       // of these, the input embedding (looked up, not multiplied) and an untied head
  double matmul_flops_per_token = 0;      // projections, MLP and head
  double recurrence_flops_per_token = 0;  // token-by-token form: decay, update and readout of the states; short convolutions
  double attention_flops_per_token = 0;   // scores and weighted sum over the tokens truly seen: causal, window
  int64_t state_bytes_per_sequence = 0;   // recurrent states (f32) and convolution tails (f32); does not grow
  int64_t kv_bytes_per_token = 0;         // bf16 keys and values of attention layers
  int64_t kv_window = 0;                  // tokens after which the KV cache stops growing; 0: never

  /// Full attention, forward and backward, for each token that a query sees: of the layers of one window (0: none).
  struct Attention {
    int64_t window = 0;
    double flops_per_span = 0;
  };
  std::vector<Attention> attention;

  /// Of a training step on these very sequences, attention by its true spans.
  double flops(const Sequences& seqs) const;
  double flops_per_token() const { return matmul_flops_per_token + recurrence_flops_per_token + attention_flops_per_token; }
};

/// At sequences of `context` tokens (0: max_position_embeddings). Only attention depends on it.
ModelCost model_cost(const ModelConfig& config, int64_t context = 0);

}  // namespace braid
