// What turns a projection into a decay. All forms are stable for inputs of any size.
#pragma once
#include <optional>

#include "autograd/apply.h"

namespace braid {

/// The forget gate of HGRN and HGRN2, as its logarithm and its complement.
///
///   a = lb + (1 − lb) · sigmoid(f),   log_decay = log a,   input_gate = 1 − a = (1 − lb) · sigmoid(−f)
///
/// Gradient, with s = sigmoid(f), r = (1 − lb)·s / a:
///   d_f  = d_log_decay * r·(1 − s) − d_input_gate * (1 − lb)·s·(1 − s)
///   d_lb = Σ_tokens d_log_decay * (1 − s) / a − d_input_gate * (1 − s);   1/a counts as at most e^80, so that d_lb stays finite
///
/// Source: Qin, Yang and Zhong, "Hierarchically Gated Recurrent Neural Network for Sequence Modeling", NeurIPS 2023; Qin et al.,
/// "HGRN2: Gated Linear RNNs with State Expansion", COLM 2024. Errors: f not [N, D], a lower_bound that is not [D].
struct HgrnGate {
  static constexpr std::string_view name = "hgrn_gate";
  struct Inputs {
    Tensor f;            // [N, D]
    Tensor lower_bound;  // lb [D], accumulator type, in [0, 1]; optional: 0
    static constexpr std::array<std::string_view, 2> names = {"f", "lower_bound"};
  };
  struct Outputs {
    Tensor log_decay;   // [N, D], accumulator type
    Tensor input_gate;  // like f
    static constexpr std::array<std::string_view, 2> names = {"log_decay", "input_gate"};
  };
  struct Saved {
    Tensor f, lower_bound, log_decay;
  };
  struct Attrs {};
  static Outputs allocate(Context& ctx, const Inputs& in, const Attrs& attrs);
  static Saved forward_cpu(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out);
  static void backward_cpu(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in);
  static Saved forward_cuda(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out);
  static void backward_cuda(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in);
};
static_assert(Differentiable<HgrnGate>);

/// The lower bound of layer `layer`'s forget gate, rising with depth: with p = softmax(weights) over layers,
///
///   bound = Σ_{1 ≤ l ≤ layer} p_l      (row `layer` of the cumulative sum less row 0; layer 0 has exactly 0)
///
/// Gradient:  d_weights_l = p_l · ([1 ≤ l ≤ layer] − bound) * d_bound
///
/// Source: as HgrnGate. Errors: weights not [L, D], a layer outside [0, L).
struct LowerBound {
  static constexpr std::string_view name = "lower_bound";
  struct Inputs {
    Tensor weights;  // [L, D]
    static constexpr std::array<std::string_view, 1> names = {"weights"};
  };
  struct Outputs {
    Tensor bound;  // [D], accumulator type
    static constexpr std::array<std::string_view, 1> names = {"bound"};
  };
  struct Saved {
    Tensor probabilities;  // softmax [L, D], accumulator type
    Tensor bound;
  };
  struct Attrs {
    int64_t layer = 0;  // in [0, L)
  };
  static Outputs allocate(Context& ctx, const Inputs& in, const Attrs& attrs);
  static Saved forward_cpu(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out);
  static void backward_cpu(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in);
  static Saved forward_cuda(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out);
  static void backward_cuda(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in);
};
static_assert(Differentiable<LowerBound>);

/// The decay of gated linear attention.
///
///   log_decay = max(logsigmoid(x) / normalizer, clamp_min)
///
/// Gradient:  d_x = d_log_decay * sigmoid(−x) / normalizer, 0 where clamped
///
/// Source: Yang et al., "Gated Linear Attention Transformers with Hardware-Efficient Training", ICML 2024. Errors: x not [N, D], a normalizer
/// that is not positive.
struct GlaGate {
  static constexpr std::string_view name = "gla_gate";
  struct Inputs {
    Tensor x;  // [N, D]
    static constexpr std::array<std::string_view, 1> names = {"x"};
  };
  struct Outputs {
    Tensor log_decay;  // [N, D], accumulator type
    static constexpr std::array<std::string_view, 1> names = {"log_decay"};
  };
  struct Saved {
    Tensor x;
  };
  struct Attrs {
    double normalizer = 16;           // > 0
    std::optional<double> clamp_min;  // absent: no clamp
  };
  static Outputs allocate(Context& ctx, const Inputs& in, const Attrs& attrs);
  static Saved forward_cpu(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out);
  static void backward_cpu(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in);
  static Saved forward_cuda(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out);
  static void backward_cuda(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in);
};
static_assert(Differentiable<GlaGate>);

/// The decay of Gated DeltaNet (and of Mamba-2).
///
///   log_decay = −exp(A_log) · softplus(a + dt_bias)
///
/// Gradient, with d_z = −d_log_decay * exp(A_log) · sigmoid(a + dt_bias):
///   d_a = d_z,   d_dt_bias = Σ_tokens d_z,   d_A_log = Σ_tokens d_log_decay * log_decay
///
/// Source: Yang, Kautz and Hatamizadeh, "Gated Delta Networks: Improving Mamba2 with Delta Rule", ICLR 2025. Errors: a not [N, HV], A_log or
/// dt_bias not [HV].
struct GdnGate {
  static constexpr std::string_view name = "gdn_gate";
  struct Inputs {
    Tensor a;        // [N, HV]
    Tensor A_log;    // [HV], accumulator type
    Tensor dt_bias;  // [HV], accumulator type
    static constexpr std::array<std::string_view, 3> names = {"a", "A_log", "dt_bias"};
  };
  struct Outputs {
    Tensor log_decay;  // [N, HV], accumulator type
    static constexpr std::array<std::string_view, 1> names = {"log_decay"};
  };
  struct Saved {
    Tensor a, A_log, dt_bias;
  };
  struct Attrs {};
  static Outputs allocate(Context& ctx, const Inputs& in, const Attrs& attrs);
  static Saved forward_cpu(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out);
  static void backward_cpu(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in);
  static Saved forward_cuda(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out);
  static void backward_cuda(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in);
};
static_assert(Differentiable<GdnGate>);

}  // namespace braid
