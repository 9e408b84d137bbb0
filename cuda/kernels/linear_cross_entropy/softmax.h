// What happens to blocks of logits between the products of linear_cross_entropy.
#pragma once
#include "core/context.h"

namespace braid::cuda {

/// One block of tokens; every pointer is that of the block's first token.
struct LossRows {
  const float* logits = nullptr;     // [rows, V]
  const int64_t* targets = nullptr;  // [rows], −1: none
  float* token_loss = nullptr;       // [rows], written by forward
  int64_t* prediction = nullptr;     // [rows] or null
  float* lse = nullptr;              // [rows], written by forward, 0 without a target
  int64_t rows = 0, V = 0;
};
/// Losses, lse and predictions of a block.
void launch_losses(Context& ctx, const LossRows& rows);

/// loss = Σ token_loss / denominator (0: the number of targets, at least 1), summed in double in a fixed order.
void launch_total_loss(Context& ctx, const Tensor& token_loss, const Tensor& targets, double denominator, const Tensor& loss);
/// scale = 1 / denominator.
void launch_loss_scale(Context& ctx, const Tensor& targets, double denominator, const Tensor& scale);

/// d_logits = g (exp(logits − lse) − onehot(target)), g = d_loss · scale + d_token_loss; zero without a target. d_logits [rows, V] may be the
/// logits themselves.
struct LossGradient {
  const float* d_loss = nullptr;        // []; null: 1
  const float* scale = nullptr;         // []; null: no gradient of the loss
  const float* d_token_loss = nullptr;  // [rows] or null
  void* d_logits = nullptr;
  DType dtype = DType::f32;  // bf16 or f32
};
void launch_loss_gradients(Context& ctx, const LossRows& rows, const LossGradient& gradient);

/// launch_losses and launch_loss_gradients with d_loss = 1 in one pass over the logits: for rows that `row_fits` says registers hold.
bool row_fits(const LossRows& rows);
void launch_row_losses(Context& ctx, const LossRows& rows, void* d_logits, DType dtype, const Tensor& scale);

/// to = factor · from, or to += factor · from; one dtype, bf16 (not added to) or f32; factor f32 [].
void launch_scaled(Context& ctx, const Tensor& to, const Tensor& from, const Tensor& factor, bool add);

}  // namespace braid::cuda
