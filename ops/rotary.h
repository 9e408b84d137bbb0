// Rotary position embedding, halves convention: channel i turns together with channel i + D/2.
//
//   angle_i = position · theta^(−2i/D),  i < D/2
//   y_i = x_i cos − x_{i+D/2} sin,   y_{i+D/2} = x_{i+D/2} cos + x_i sin
//
// Positions count from offsets[s] in every sequence s. Gradient: the same turn backwards. Angles are computed in double.
//
// Source: Su et al., "RoFormer: enhanced transformer with rotary position embedding", 2021.
#pragma once
#include "autograd/apply.h"
#include "core/sequences.h"

namespace braid {

/// Errors: x not [N, H, D] with an even D, sequences that do not cover the tokens, theta not positive, offsets that are not one
/// per sequence or negative.
struct Rotary {
  static constexpr std::string_view name = "rotary";
  struct Inputs {
    Tensor x;  // [N, H, D]
    static constexpr std::array<std::string_view, 1> names = {"x"};
  };
  struct Outputs {
    Tensor y;  // like x
    static constexpr std::array<std::string_view, 1> names = {"y"};
  };
  struct Saved {};
  struct Attrs {
    Sequences seqs;
    double theta = 10000;
    std::vector<int64_t> offsets = {};  // first position of each sequence; empty: 0 for all
    Tensor device_offsets = {};         // the same on a GPU, i64 [S], instead: a recorded graph reads it at every replay
  };
  static Outputs allocate(Context& ctx, const Inputs& in, const Attrs& attrs);
  static Saved forward_cpu(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out);
  static void backward_cpu(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in);
  static Saved forward_cuda(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out);
  static void backward_cuda(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in);
};
static_assert(Differentiable<Rotary>);

}  // namespace braid
