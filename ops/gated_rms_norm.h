// Root-mean-square normalisation with a learned weight and a gate: the output norm of the linear mixers.
//
//   y = x · r * weight * act(gate),   r = 1 / sqrt(mean(x²) + eps),   act = swish (z·sigmoid(z)) or sigmoid
//
// Gradient, with n = x·r, s = act(gate), g = d_y * weight * s:
//   d_x = r · (g − n · mean(g * n)),   d_gate = d_y * n * weight * act'(gate),   d_weight = Σ_rows d_y * n * s
//
// Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", NeurIPS 2019; the gate as in Sun et al., "Retentive
// Network: A Successor to Transformer for Large Language Models", 2023.
#pragma once
#include "autograd/apply.h"

namespace braid {

enum class GateActivation : uint8_t { swish, sigmoid };

/// Errors: x without a dimension, a gate unlike x, a weight that is not [D]; on a GPU D above 8,192.
struct GatedRmsNorm {
  static constexpr std::string_view name = "gated_rms_norm";
  struct Inputs {
    Tensor x;       // [..., D]
    Tensor gate;    // like x
    Tensor weight;  // [D], f32 (f64 for f64)
    static constexpr std::array<std::string_view, 3> names = {"x", "gate", "weight"};
  };
  struct Outputs {
    Tensor y;  // like x
    static constexpr std::array<std::string_view, 1> names = {"y"};
  };
  struct Saved {
    Tensor x, gate, weight;
    Tensor rstd;  // [rows], accumulator type
  };
  struct Attrs {
    double eps = 1e-6;
    GateActivation activation = GateActivation::swish;
  };
  static Outputs allocate(Context& ctx, const Inputs& in, const Attrs& attrs);
  static Saved forward_cpu(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out);
  static void backward_cpu(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in);
  static Saved forward_cuda(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out);
  static void backward_cuda(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in);
};
static_assert(Differentiable<GatedRmsNorm>);

}  // namespace braid
