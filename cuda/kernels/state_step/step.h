// One token of each sequence, where nothing is kept for backward: recurrences whose state is a matrix.
#pragma once
#include "core/context.h"
#include "core/sequences.h"

namespace braid::cuda {

/// S' = diag(exp(log_decay)) S,   u = beta (v − S'ᵀ k), or v without beta,   S'' = S' + k uᵀ,   o = scale S''ᵀ q
struct StateStep {
  Tensor q, k;       // [S, H, K], bf16 or f32
  Tensor v;          // [S, HV, V], like q; HV a multiple of H
  Tensor beta;       // [S, HV], like q or f32; optional
  Tensor log_decay;  // [HV], [S, HV] or [S, HV, K], like q or f32; optional
  Tensor initial;    // [S, HV, K, V] f32; optional (zero)
  Tensor o;          // [S, HV, V], like q
  Tensor final;      // [S, HV, K, V] f32; may be `initial`
  double scale = 1;
  bool qk_l2norm = false;  // q and k are divided by sqrt(sum of squares + 1e-6)
};

/// Whether there is a step for K channels of q and these sequences: one token each, no tape.
bool takes_step(Context& ctx, int64_t K, const Sequences& seqs);
void step(Context& ctx, std::string_view op, const StateStep& step);

}  // namespace braid::cuda
