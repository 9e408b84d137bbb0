// The elementwise linear recurrence of HGRN.
//
//   h_t = exp(log_decay_t) * h_{t-1} + x_t,   o_t = h_t,   final_state = h of the last token (initial_state of an empty sequence)
//
// within each sequence, from initial_state or zero. Gradient, with g_t the gradient of h_t and g_{T+1} = d_final_state (a decay of 1
// after the last token):
//   g_t = d_o_t + exp(log_decay_{t+1}) * g_{t+1},   d_x_t = g_t,   d_log_decay_t = exp(log_decay_t) * g_t * h_{t-1},
//   d_initial_state = exp(log_decay_1) * g_1
//
// log_decay may be anything up to -infinity (a reset). Saved: log_decay, initial_state and o, which are there anyway.
// Errors: shapes and dtypes that do not fit x [N, D], sequences that do not end at N.
//
// Source: Qin, Yang and Zhong, "Hierarchically Gated Recurrent Neural Network for Sequence Modeling", NeurIPS 2023.
#pragma once
#include "autograd/apply.h"
#include "core/sequences.h"
#include "ops/recurrence/form.h"

namespace braid {

/// Errors: shapes and dtypes that do not fit x, sequences that do not cover the tokens.
struct LinearRecurrence {
  static constexpr std::string_view name = "linear_recurrence";
  struct Inputs {
    Tensor x;              // [N, D], floating
    Tensor log_decay;      // [N, D], like x or of its accumulator type
    Tensor initial_state;  // [S, D], accumulator type of x, optional: zero
    static constexpr std::array<std::string_view, 3> names = {"x", "log_decay", "initial_state"};
  };
  struct Outputs {
    Tensor o;            // like x
    Tensor final_state;  // [S, D], accumulator type of x
    static constexpr std::array<std::string_view, 2> names = {"o", "final_state"};
  };
  struct Saved {
    Tensor log_decay, initial_state, o;
  };
  struct Attrs {
    Sequences seqs;  // must end at N
    Form form = Form::automatic;
    bool in_place = false;  // one token a sequence, no gradient, a GPU: the final state is written over the initial one
  };
  static Outputs allocate(Context& ctx, const Inputs& in, const Attrs& attrs);
  static Saved forward_cpu(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out);
  static void backward_cpu(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in);
  static Saved forward_cuda(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out);
  static void backward_cuda(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in);
};
static_assert(Differentiable<LinearRecurrence>);

}  // namespace braid
