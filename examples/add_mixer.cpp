// A token mixer defined outside the library, step by step as README.md says: linear attention with one learned decay per head and token, as
// in Mamba-2 (Dao and Gu, "Transformers are SSMs", 2024). The program checks that whole sequences and one-token steps agree.
#include <cmath>
#include <cstdio>

#include "models/layers/mixer_output.h"
#include "models/layers/projection.h"
#include "models/layers/recur.h"
#include "ops/elementwise.h"
#include "ops/recurrence/gated_linear_attention.h"

namespace {

using namespace braid;

class ScalarDecayMixer final : public Mixer {
 public:
  // 1. Parameters: members that are modules, adopted in the order in which files list them.
  ScalarDecayMixer(const ModelConfig& config, const std::string& name)
      : num_heads_(config.num_heads),
        head_k_dim_(config.key_dim() / config.num_heads),
        head_v_dim_(config.value_dim() / config.num_heads),
        q_(config, name, "q", config.key_dim(), ProjectionActivation::with_conv),
        k_(config, name, "k", config.key_dim(), ProjectionActivation::with_conv),
        v_(config, name, "v", config.value_dim(), ProjectionActivation::with_conv),
        decay_(name + ".a_proj", config.hidden_size, config.num_heads, /*has_bias=*/true),
        output_(name, {.hidden_size = config.hidden_size, .num_heads = num_heads_, .head_dim = head_v_dim_, .norm_name = "o_norm"}) {
    adopt(q_);
    adopt(k_);
    adopt(v_);
    adopt(decay_);
    adopt(output_);
  }

  // 2. The equation: projections, a gate, one of the three recurrences, and the state read and handed on.
  Tensor forward(Context& ctx, const MixerInput& in) const override {
    const int64_t N = in.x.size(0);
    const Shape keys = {N, num_heads_, head_k_dim_}, values = {N, num_heads_, head_v_dim_};
    const auto [q, k, v, a] = project_each(ctx, in, {q_.map(ctx, in, 0), k_.map(ctx, in, 1), v_.map(ctx, in, 2), decay_.map(ctx)});
    const Tensor log_decay = apply<LogSigmoid>(ctx, {a}).y;
    const Tensor o =
        recur<GatedLinearAttention>(ctx, in, {q.view(keys), k.view(keys), v.view(values), log_decay, {}}, {.seqs = in.seqs, .scale = {}});
    return output_(ctx, o, in.x);
  }

  // 3. What it costs, for `braid models` and the MFU.
  MixerCost cost() const override {
    const int64_t state = num_heads_ * head_k_dim_ * head_v_dim_;
    MixerCost cost{.state_elements = state, .recurrence_flops = 5.0 * static_cast<double>(state)};
    add_conv_cost(cost, q_, k_, v_);
    return cost;
  }

 private:
  int64_t num_heads_, head_k_dim_, head_v_dim_;
  Projection q_, k_, v_;
  LinearLayer decay_;
  MixerOutput output_;
};

double difference(Context& ctx, const Tensor& whole, int64_t row, const Tensor& step) {
  const std::vector<double> a = to_vector<double>(ctx, whole.slice(0, row, row + 1)), b = to_vector<double>(ctx, step);
  double worst = 0;
  for (size_t i = 0; i < a.size(); ++i) worst = std::max(worst, std::abs(a[i] - b[i]));
  return worst;
}

}  // namespace

int main() {
  Context ctx(0);
  ModelConfig config;
  config.family = Family::gla;  // whose widths this mixer borrows
  config.hidden_size = 32;
  config.num_heads = config.num_kv_heads = 2;
  config.use_short_conv = true;
  const ScalarDecayMixer mixer(config, "mixer");
  initialize(ctx, mixer, DType::f64, 0.3, /*seed=*/1);

  constexpr int64_t kTokens = 70;
  std::vector<double> values(kTokens * config.hidden_size);
  for (double& value : values) value = ctx.random.normal();
  const Tensor x = from_vector(ctx, values, {kTokens, config.hidden_size});
  const Tensor whole = mixer.forward(ctx, {.x = x, .seqs = Sequences::single(kTokens)});

  double worst = 0;
  LayerState state;
  const Sequences one = Sequences::single(1);
  for (int64_t t = 0; t < kTokens; ++t)
    worst = std::max(worst, difference(ctx, whole, t, mixer.forward(ctx, {.x = x.slice(0, t, t + 1), .seqs = one, .state = &state})));
  std::printf("mixer: %lld parameters; whole sequence and %lld one-token steps differ by %.1e\n", static_cast<long long>(mixer.num_parameters()),
              static_cast<long long>(kTokens), worst);
  return worst < 1e-12 ? 0 : 1;
}
