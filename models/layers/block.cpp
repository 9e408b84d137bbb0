#include "models/layers/block.h"

#include "autograd/recompute.h"
#include "ops/elementwise.h"

namespace braid {
namespace {

struct RunMlp {
  const Mlp* mlp;
  Tensor operator()(Context& ctx, const std::vector<Tensor>& inputs) const { return (*mlp)(ctx, inputs[0]); }
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

Tensor Block::operator()(Context& ctx, const MixerInput& in, bool recompute_mlp) const {
  // On the CPU the two gradients of x are added apart: the bits of its runs stay what they were.
  const RmsNorm::Outputs first = ctx.on_cpu() ? RmsNorm::Outputs{attn_norm_(ctx, in.x), in.x} : attn_norm_.with_input(ctx, in.x);
  const Tensor mixed = mixer_->forward(ctx, {first.y, in.seqs, in.state, in.positions, in.device_positions});
  const auto normed = mlp_norm_.add(ctx, mixed, first.sum);
  const Tensor update = recompute_mlp ? recompute(ctx, RunMlp{&mlp_}, {normed.y}) : mlp_(ctx, normed.y);
  return apply<Add>(ctx, {normed.sum, update}).y;
}

}  // namespace braid
