#include "models/layers/block.h"

#include "autograd/recompute.h"

namespace braid {
namespace {

struct RunMlp {
  const Mlp* mlp;
  std::vector<Tensor> operator()(Context& ctx, const std::vector<Tensor>& inputs) const { return {(*mlp)(ctx, inputs[0])}; }
};

std::string prefix(int64_t layer_idx) { return "model.layers." + std::to_string(layer_idx); }

}  // namespace

Block::Block(const ModelConfig& config, int64_t layer_idx, const Parameter& lower_bounds)
    : attn_norm_(prefix(layer_idx) + ".attn_norm", config.hidden_size, config.norm_eps),
      mixer_(make_mixer(config, layer_idx, prefix(layer_idx) + ".attn", lower_bounds)),
      mlp_norm_(prefix(layer_idx) + ".mlp_norm", config.hidden_size, config.norm_eps),
      mlp_(prefix(layer_idx) + ".mlp", config.hidden_size, config.mlp_width()) {
  adopt(attn_norm_);
  adopt(*mixer_);
  adopt(mlp_norm_);
  adopt(mlp_);
}

ResidualStream Block::operator()(Context& ctx, const ResidualStream& stream, MixerInput in, bool recompute_mlp) const {
  const RmsNorm::Outputs first = attn_norm_.add(ctx, stream.x, stream.update);
  in.x = first.y;
  const RmsNorm::Outputs second = mlp_norm_.add(ctx, mixer_->forward(ctx, in), first.sum);
  return {second.sum, recompute_mlp ? recompute(ctx, RunMlp{&mlp_}, {second.y})[0] : mlp_(ctx, second.y)};
}

}  // namespace braid
