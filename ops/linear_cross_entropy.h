// The last linear layer and the cross-entropy after it, block by block: all logits never exist at once.
//
//   logits_n = weight · x_n,   lse_n = log Σ_v exp(logits_nv)
//   token_loss_n = lse_n − logits_n[targets_n]  (0 where targets_n = −1),   loss = Σ_n token_loss_n / denominator
//
// Gradient, with g_n = d_loss / denominator + d_token_loss_n (0 where there is no target) and P = exp(logits − lse):
//   d_logits_n = g_n · (P_n − onehot(targets_n)),   d_x = d_logits · weight,   d_weight += d_logitsᵀ · x  (added in place)
// Backward computes the logits of each block again instead of keeping them. On a GPU a forward that is recorded makes d_x and d_weight for
// d_loss = 1 while it has them: three products instead of four. They are what backward uses, scaled, where no gradient of token_loss comes.
//
// No more than block_tokens × V logits (and as many of their gradients, in the same place) are held at any time. Tokens without a
// target cost nothing unless predictions are asked for.
#pragma once
#include "autograd/apply.h"

namespace braid {

/// Errors: shapes and dtypes that do not fit, a negative denominator or block_tokens; on the CPU a target outside [−1, V), named
/// with its index (on a GPU the caller checks where targets are on the host).
struct LinearCrossEntropy {
  static constexpr std::string_view name = "linear_cross_entropy";
  static constexpr int accumulates = 1;  // d_weight
  struct Inputs {
    Tensor x;        // [N, D]
    Tensor weight;   // [V, D], dtype of x
    Tensor targets;  // i64 [N], −1 where there is none
    static constexpr std::array<std::string_view, 3> names = {"x", "weight", "targets"};
  };
  struct Outputs {
    Tensor loss;        // [], accumulator type
    Tensor token_loss;  // [N], accumulator type
    Tensor prediction;  // i64 [N], the most likely token (the smallest of equals); undefined unless attrs.predict
    static constexpr std::array<std::string_view, 3> names = {"loss", "token_loss", "prediction"};
  };
  struct Saved {
    Tensor x, weight, targets;
    Tensor lse;         // [N], accumulator type; set where there is a target, else 0
    Tensor loss_scale;  // [], accumulator type: 1 / denominator
    Tensor d_x;         // [N, D], d_weight [V, D] f32: gradients for d_loss = 1, of a forward recorded on a GPU
    Tensor d_weight;
  };
  struct Attrs {
    double denominator = 0;  // 0: the number of targets, at least 1
    bool predict = false;
    int64_t block_tokens = 0;  // 0: chosen so that a block of logits is a few MB (256 MB on a GPU, where products must be large)
    int64_t block_tokens_for(int64_t V) const;
  };
  static Outputs allocate(Context& ctx, const Inputs& in, const Attrs& attrs);
  static Saved forward_cpu(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out);
  static void backward_cpu(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in);
  static Saved forward_cuda(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out);
  static void backward_cuda(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in);
};
static_assert(Differentiable<LinearCrossEntropy>);

}  // namespace braid
