// What follows a recurrence: RMSNorm of each head, a SiLU gate where there is one, and the output projection.
#pragma once
#include <optional>

#include "models/layers/linear.h"
#include "models/layers/norm.h"

namespace braid {

/// y = o_proj(rms_norm(o) · w [· silu(g_proj(x))]), with `name`.{g,o}_proj.weight and `name`.`norm_name`.weight [head_dim].
class MixerOutput final : public Module {
 public:
  struct Options {
    int64_t hidden_size = 0;
    int64_t num_heads = 1;  // of the norm: 1 normalises over the whole width
    int64_t head_dim = 0;
    double eps = 1e-6;
    std::string norm_name;
    bool gated = true;
  };
  MixerOutput(const std::string& name, Options options);
  /// o [N, num_heads · head_dim] in any shape, x [N, hidden_size] → [N, hidden_size].
  /// `gate_of_x` is what gate_early made of x; undefined where it made nothing.
  Tensor operator()(Context& ctx, const Tensor& o, const Tensor& x, const Tensor& gate_of_x = {}) const;
  /// g_proj where it is better applied together with other maps of x: to one token. Elsewhere no map: its y would only be kept longer.
  ProjectionMap gate_early(Context& ctx, const Tensor& x) const { return gate_ && x.size(0) == 1 ? gate_->map(ctx) : ProjectionMap{}; }

 private:
  Options options_;
  std::optional<LinearLayer> gate_;
  NormLayer norm_;
  LinearLayer out_;
};

}  // namespace braid
