// Causal softmax attention over packed sequences: grouped queries, sliding window, keys that reach further back than the queries.
//
// Query i of a sequence with lq queries and lk ≥ lq keys sits at position p = lk − lq + i (so decoding with a cache is the same
// operator) and sees the keys j in (p − window, p], or all of [0, p] without a window. With key head h' = h / (H / HK):
//   s_j = scale · <q, k_j>,   lse = log Σ_j exp(s_j),   P_j = exp(s_j − lse),   o = Σ_j P_j v_j
//
// Gradient, with delta = <d_o, o> − d_lse:
//   d_s_j = P_j · (<d_o, v_j> − delta),   d_q = scale · Σ_j d_s_j k_j,   d_k_j = scale · Σ d_s_j q,   d_v_j = Σ P_j d_o
// (sums for k and v over all queries that see j and all query heads of the group).
//
// lse is there to join partial results and to test with. Its gradient is honoured; no layer of Braid uses it.
//
// Source: Vaswani et al., "Attention is all you need", NeurIPS 2017; grouped queries: Ainslie et al., "GQA", EMNLP 2023; blocks
// with the saved log-sum: Dao, "FlashAttention-2", ICLR 2024.
#pragma once
#include <optional>

#include "autograd/apply.h"
#include "core/sequences.h"

namespace braid {

/// Errors: shapes and dtypes that do not fit, H not a multiple of HK, a negative window, sequences that do not cover the tokens, a
/// sequence with fewer keys than queries.
struct Attention {
  static constexpr std::string_view name = "attention";
  struct Inputs {
    Tensor q;  // [Nq, H, D]
    Tensor k;  // [Nk, HK, D], dtype of q
    Tensor v;  // [Nk, HK, DV], dtype of q
    static constexpr std::array<std::string_view, 3> names = {"q", "k", "v"};
  };
  struct Outputs {
    Tensor o;    // [Nq, H, DV], dtype of q
    Tensor lse;  // [Nq, H], accumulator type
    static constexpr std::array<std::string_view, 2> names = {"o", "lse"};
  };
  struct Saved {
    Tensor q, k, v, o, lse;
  };
  struct Attrs {
    Sequences q_seqs;
    Sequences k_seqs = {};             // no sequences at all: the same as q_seqs
    std::optional<double> scale = {};  // D^-1/2 unless given
    int64_t window = 0;                // 0: none; else the last `window` keys, the query's own position included

    const Sequences& keys() const { return k_seqs.count() == 0 ? q_seqs : k_seqs; }
    double scale_for(int64_t D) const;
  };
  static Outputs allocate(Context& ctx, const Inputs& in, const Attrs& attrs);
  static Saved forward_cpu(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out);
  static void backward_cpu(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in);
  static Saved forward_cuda(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out);
  static void backward_cuda(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in);
};
static_assert(Differentiable<Attention>);

}  // namespace braid
