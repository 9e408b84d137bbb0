// Short causal depthwise convolution over packed sequences, with an optional SiLU and an optional division by lengths.
//
//   z_t[d] = Σ_{w=0}^{W−1} weight[d, w] · x_{t−W+1+w}[d],   a = act(z),   o = a, or with norm_dim of each head h of so many channels
//   o_h = a_h · r,   r = 1 / sqrt(Σ a_h² + 1e-6)
//
// Inputs before a sequence's start come from initial_state (initial_state[s, d, j] is x_{j−(W−1)}: oldest first), zero without
// one. final_state is the last W − 1 inputs, initial ones included when the sequence is shorter: what the next part starts from.
//
// Gradient, with d_z = d_a · act'(z), d_a = d_o or of each head r (d_o − o Σ d_o o) (zero outside the sequence) and x_i running over initial and
// given inputs alike:
//   d_x_i = Σ_w weight[:, w] · d_z_{i+W−1−w} + d_final_state where x_i is kept there,   d_weight[:, w] = Σ_t d_z_t · x_{t−W+1+w}
//
// Source: used before the recurrence by Yang et al., "Parallelizing linear transformers with the delta rule", NeurIPS 2024.
#pragma once
#include "autograd/apply.h"
#include "core/sequences.h"

namespace braid {

enum class ConvActivation : uint8_t { none, silu };
inline constexpr double kConvNormEps = 1e-6;

/// Errors: shapes and dtypes that do not fit, a width of 0, a norm_dim that does not divide D, sequences that do not cover the tokens.
struct ShortConv {
  static constexpr std::string_view name = "short_conv";
  struct Inputs {
    Tensor x;              // [N, D]
    Tensor weight;         // [D, W], accumulator type
    Tensor initial_state;  // [S, D, W−1], accumulator type, optional
    static constexpr std::array<std::string_view, 3> names = {"x", "weight", "initial_state"};
  };
  struct Outputs {
    Tensor o;            // [N, D], dtype of x
    Tensor final_state;  // [S, D, W−1], accumulator type
    static constexpr std::array<std::string_view, 2> names = {"o", "final_state"};
  };
  struct Saved {
    Tensor x, weight, initial_state;
  };
  struct Attrs {
    Sequences seqs;
    ConvActivation activation = ConvActivation::none;
    int64_t norm_dim = 0;  // channels of a head, whose rows of o have unit length; divides D. 0: no such heads
  };
  static Outputs allocate(Context& ctx, const Inputs& in, const Attrs& attrs);
  static Saved forward_cpu(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out);
  static void backward_cpu(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in);
  static Saved forward_cuda(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out);
  static void backward_cuda(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in);
};
static_assert(Differentiable<ShortConv>);

}  // namespace braid
