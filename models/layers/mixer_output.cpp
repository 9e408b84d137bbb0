#include "models/layers/mixer_output.h"

#include "ops/gated_rms_norm.h"

namespace braid {

MixerOutput::MixerOutput(const std::string& name, Options options)
    : options_(std::move(options)),
      norm_(name + "." + options_.norm_name, options_.head_dim, options_.eps),
      out_(name + ".o_proj", options_.num_heads * options_.head_dim, options_.hidden_size) {
  if (options_.gated) adopt(gate_.emplace(name + ".g_proj", options_.hidden_size, options_.num_heads * options_.head_dim));
  adopt(norm_);
  adopt(out_);
}

Tensor MixerOutput::operator()(Context& ctx, const Tensor& o, const Tensor& x, const Tensor& gate_of_x) const {
  const int64_t N = x.size(0);
  const Shape heads = {N, options_.num_heads, options_.head_dim};
  Tensor y;
  if (gate_) {
    const Tensor by = gate_of_x ? gate_of_x : (*gate_)(ctx, x);
    y = apply<GatedRmsNorm>(ctx, {o.view(heads), by.view(heads), norm_.weight.use(ctx)}, {options_.eps, GateActivation::swish}).y;
  } else y = norm_(ctx, o.view(heads));
  return out_(ctx, y.view({N, options_.num_heads * options_.head_dim}));
}

}  // namespace braid
