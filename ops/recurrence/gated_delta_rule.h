// Delta rule with an optional decay, per head or per channel: DeltaNet, Gated DeltaNet and KDA.
//
// For each sequence and value head j, with q, k of head j / (HV / H), S [K, V] and a_t = exp(log_decay_t) (1 when absent):
//   S'  = diag(a_t) S_{t-1}
//   u_t = beta_t (v_t − S'^T k_t)
//   S_t = S' + k_t u_t^T
//   o_t = scale · S_t^T q_t
// With qk_l2norm, q and k are first divided by sqrt(sum of squares + 1e-6) per head.
//
// Gradient, backwards in t with dS the gradient of S_t (at the end that of the final state), e_t = v_t − S'^T k_t:
//   dS += scale · q_t d_o_t^T,   d_q_t = scale · S_t d_o_t,   d_u = dS^T k_t,   d_beta_t = d_u · e_t,   d_v_t = beta_t d_u
//   d_k_t = dS u_t − S' d_v_t,   dS' = dS − k_t d_v_t^T,   d_log_decay_t = rows of (S' ∘ dS') summed,   dS_{t-1} = diag(a_t) dS'
// d_q and d_k are sums over the value heads of a group.
//
// Two forms of the same mathematics: token by token (the definition; keeps every state) and in chunks of 64 tokens, where the
// u of a chunk are U = A diag(beta) (V − K⁺ S_0), A = (I + strictly lower part of diag(beta) (K K^T ∘ decay))^{-1}: matrix products
// (keeps the state at each chunk's start, A and U). log_decay should be ≤ 0; nothing is ever divided by a decay.
//
// Errors: shapes and dtypes that do not fit q [N, H, K] and v [N, HV, V], HV that is no multiple of H, sequences that do not end at N; on a GPU
// K above 1,024 (bf16 with K of 64, 128 or 256 takes the fast kernels).
//
// Sources: Yang et al., "Parallelizing Linear Transformers with the Delta Rule over Sequence Length", NeurIPS 2024; Yang, Kautz and
// Hatamizadeh, "Gated Delta Networks", ICLR 2025; Kimi Team, "Kimi Linear", 2025 (per-channel decay).
#pragma once
#include <optional>

#include "autograd/apply.h"
#include "core/sequences.h"
#include "ops/recurrence/form.h"

namespace braid {

struct GatedDeltaRule {
  static constexpr std::string_view name = "gated_delta_rule";
  struct Inputs {
    Tensor q;              // [N, H, K]
    Tensor k;              // [N, H, K]
    Tensor v;              // [N, HV, V], HV a multiple of H
    Tensor beta;           // [N, HV], like q or accumulator type
    Tensor log_decay;      // [N, HV] or [N, HV, K], like q or accumulator type; optional
    Tensor initial_state;  // [S, HV, K, V], accumulator type; optional (zero)
    static constexpr std::array<std::string_view, 6> names = {"q", "k", "v", "beta", "log_decay", "initial_state"};
  };
  struct Outputs {
    Tensor o;            // like v
    Tensor final_state;  // [S, HV, K, V], accumulator type
    static constexpr std::array<std::string_view, 2> names = {"o", "final_state"};
  };
  struct Saved {
    Tensor q, k;  // as the recurrence sees them: after qk_l2norm
    Tensor v, beta, log_decay, initial_state, final_state;
    Tensor q_rstd, k_rstd;  // [N, H], with qk_l2norm
    Tensor states;          // token form: the state after each token; chunked: before each chunk
    Tensor inverse, u;      // chunked form: A and U of each chunk
  };
  struct Attrs {
    Sequences seqs;
    std::optional<double> scale;  // K^-1/2 when absent
    bool qk_l2norm = false;
    Form form = Form::automatic;  // chunked where the longest sequence has more than 16 tokens
    bool in_place = false;        // one token a sequence, no gradient, a GPU: the final state is written over the initial one
  };
  static Outputs allocate(Context& ctx, const Inputs& in, const Attrs& attrs);
  static Saved forward_cpu(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out);
  static void backward_cpu(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in);
  static Saved forward_cuda(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out);
  static void backward_cuda(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in);
};
static_assert(Differentiable<GatedDeltaRule>);

}  // namespace braid
