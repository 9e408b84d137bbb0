// Linear attention with a decaying matrix state: RetNet, GLA, HGRN2, Mamba-2, Lightning attention.
//
//   S_t = diag(a_t) S_{t-1} + k_t v_t^T,   o_t = scale · S_t^T q_t,   a_t = exp(log_decay_t),   final_state = S of the last token
//
// per head, within each sequence, from initial_state or zero (final_state of an empty sequence = its initial_state). log_decay is
// absent (a = 1), constant per head [H], per token and head [N, H], or per key channel [N, H, K]; anything up to -infinity.
//
// Gradient, with G_t the gradient of S_t (what lies after the last token: d_final_state, undecayed):
//   G_t = scale · q_t d_o_t^T + diag(a_{t+1}) G_{t+1}
//   d_q_t = scale · S_t d_o_t,   d_k_t = G_t v_t,   d_v_t = G_t^T k_t,   d_initial_state = diag(a_1) G_1
//   d_log_decay_t = a_t * rowsum(S_{t-1} * G_t), summed over what shares the decay (channels, and tokens for [H])
//
// Chunked form: c = 16 tokens at once, with p_t = a_1 … a_t and r_t = a_{t+1} … a_c counted within the chunk, D_ts = a_{s+1} … a_t:
//   A_ts = scale Σ_k q_tk k_sk D_tsk (s ≤ t),   O = scale (Q * p) S + A V,   S ← diag(p_c) S + (K * r)^T V
// Decays are only ever multiplied, never divided or subtracted as logarithms, so that strong ones lose no digit. Saved: the inputs
// and the state every 64 tokens (chunked) or after every token (token by token, while a tape records); backward recomputes the rest.
// Errors: shapes and dtypes that do not fit q [N, H, K] and v, sequences that do not end at N, a scale that is not finite; on a GPU K above 512.
// Source: Yang et al., "Gated Linear Attention Transformers with Hardware-Efficient Training", ICML 2024; Sun et al., "Retentive Network", 2023.
#pragma once
#include <optional>

#include "autograd/apply.h"
#include "core/sequences.h"
#include "ops/recurrence/form.h"

namespace braid {

/// Errors: shapes and dtypes that do not fit q and v, sequences that do not cover the tokens, a scale that is not finite; on a GPU K above 512.
struct GatedLinearAttention {
  static constexpr std::string_view name = "gated_linear_attention";
  struct Inputs {
    Tensor q;              // [N, H, K], floating
    Tensor k;              // [N, H, K], like q
    Tensor v;              // [N, H, V], dtype of q
    Tensor log_decay;      // [H], [N, H] or [N, H, K], dtype of q or its accumulator type; optional: no decay
    Tensor initial_state;  // [S, H, K, V], accumulator type of q, optional: zero
    static constexpr std::array<std::string_view, 5> names = {"q", "k", "v", "log_decay", "initial_state"};
  };
  struct Outputs {
    Tensor o;            // [N, H, V], dtype of q
    Tensor final_state;  // [S, H, K, V], accumulator type of q
    static constexpr std::array<std::string_view, 2> names = {"o", "final_state"};
  };
  struct Saved {
    Tensor q, k, v, log_decay, initial_state;
    Tensor states;  // chunked: [chunks of 64 of all sequences, H, K, V], before each; token: [N, H, K, V], after each token;
                    // CUDA: [slots of chunks of 64, H, K, V], before each chunk (cuda/kernels/gated_linear_attention/chunks.h)
    // CUDA's tensor cores, where channels share decays: of each chunk (cut.h there).
    Tensor pairs, decay, factors;
  };
  struct Attrs {
    Sequences seqs;               // must end at N
    std::optional<double> scale;  // absent: K^-1/2
    Form form = Form::automatic;
    bool in_place = false;  // one token a sequence, no gradient, a GPU: the final state is written over the initial one
  };
  static Outputs allocate(Context& ctx, const Inputs& in, const Attrs& attrs);
  static Saved forward_cpu(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out);
  static void backward_cpu(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in);
  static Saved forward_cuda(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out);
  static void backward_cuda(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in);
};
static_assert(Differentiable<GatedLinearAttention>);

}  // namespace braid
