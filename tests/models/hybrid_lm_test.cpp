#include "models/hybrid_lm.h"

#include <gtest/gtest.h>

#include <cmath>

#include "models/cost.h"
#include "models/presets.h"
#include "tests/models/small_models.h"

namespace braid::testing {
namespace {

const std::vector<int64_t> kLengths = {19, 0, 1, 7};

/// Every parameter moved by `step` along `directions`.
void move(const HybridLm& model, const std::vector<std::vector<double>>& directions, double step) {
  for (size_t p = 0; p < directions.size(); ++p) {
    double* value = model.parameters()[p]->value.data<double>();
    for (size_t i = 0; i < directions[p].size(); ++i) value[i] += step * directions[p][i];
  }
}

/// A random direction of length one in the parameters that `chosen` names (all of them: -1).
std::vector<std::vector<double>> unit_direction(const HybridLm& model, int64_t chosen, Random& random) {
  std::vector<std::vector<double>> direction;
  double sum = 0;
  for (const Parameter* parameter : model.parameters()) {
    std::vector<double>& values = direction.emplace_back(parameter->shape.numel(), 0.0);
    if (chosen >= 0 && chosen != static_cast<int64_t>(direction.size()) - 1) continue;
    for (double& value : values) {
      value = random.normal();
      sum += value * value;
    }
  }
  for (auto& values : direction)
    for (double& value : values) value /= std::sqrt(sum);
  return direction;
}

/// The gradient along random directions in all parameters at once, and in each alone, against differences of fourth order: norms of
/// nearly empty states bend the loss so much that the usual two points are off by more than the tolerance.
void check_gradient(const ModelConfig& config) {
  constexpr double kStep = 1e-5;
  Context ctx(2);
  const HybridLm model(config);
  fill(ctx, model);
  const Packed batch = random_tokens(config.vocab_size, kLengths);
  run_loss(ctx, model, batch, true);
  Random random(11);
  const auto num_parameters = static_cast<int64_t>(model.parameters().size());
  for (int64_t chosen = -1; chosen < num_parameters; ++chosen) {
    const auto direction = unit_direction(model, chosen, random);
    double expected = 0, norm = 0, count = 0;
    for (int64_t p = 0; p < num_parameters; ++p) {
      const std::vector<double> grad = to_vector<double>(ctx, model.parameters()[p]->grad);
      for (size_t i = 0; chosen < 0 || chosen == p ? i < grad.size() : false; ++i) {
        expected += direction[p][i] * grad[i];
        norm += grad[i] * grad[i];
        ++count;
      }
    }
    const auto loss_at = [&](double step) {
      move(model, direction, step);
      const double loss = item(ctx, run_loss(ctx, model, batch, false).loss);
      move(model, direction, -step);
      return loss;
    };
    const double near = loss_at(kStep) - loss_at(-kStep), far = loss_at(2 * kStep) - loss_at(-2 * kStep);
    EXPECT_NEAR((8 * near - far) / (12 * kStep), expected, 1e-6 * (std::sqrt(norm / count) + 1e-3))
        << (chosen < 0 ? "all parameters" : model.parameters()[chosen]->name);
  }
}

Tensor full_logits(Context& ctx, const HybridLm& model, const Packed& batch) {
  return model.logits(ctx, model.hidden(ctx, token_tensor(ctx, batch.tokens), batch.seqs));
}

/// Decoding: `chunks[c][s]` tokens of sequence s in call c. Rows are put back where the full forward has them.
Tensor logits_in_chunks(Context& ctx, const HybridLm& model, const Packed& batch, const std::vector<std::vector<int64_t>>& chunks) {
  State state = make_state(model, ctx, batch.seqs.count());
  Tensor all = Tensor::zeros(ctx, {batch.seqs.num_tokens(), model.config().vocab_size}, model.parameters()[0]->value.dtype());
  for (const std::vector<int64_t>& lengths : chunks) {
    const Sequences seqs = Sequences::of_lengths(lengths);
    const std::vector<int64_t> before = state.positions;
    std::vector<int64_t> tokens;
    for (size_t s = 0; s < lengths.size(); ++s)
      for (int64_t i = 0; i < lengths[s]; ++i) tokens.push_back(batch.tokens[batch.seqs.begin(s) + before[s] + i]);
    const Tensor part = model.logits(ctx, model.hidden(ctx, token_tensor(ctx, tokens), seqs, &state));
    for (int64_t s = 0; s < seqs.count(); ++s)
      if (seqs.length(s) > 0)
        copy_into(ctx, all.slice(0, batch.seqs.begin(s) + before[s], batch.seqs.begin(s) + before[s] + seqs.length(s)),
                  part.slice(0, seqs.begin(s), seqs.end(s)));
  }
  return all;
}

void check_decoding(const ModelConfig& config) {
  Context ctx(2);
  const HybridLm model(config);
  fill(ctx, model);
  const Packed batch = random_tokens(config.vocab_size, {25, 0, 3, 21});
  const Tensor expected = full_logits(ctx, model, batch);
  std::vector<std::vector<int64_t>> prefill_then_steps = {{20, 0, 1, 18}, {1, 0, 1, 1}, {1, 0, 1, 1}, {1, 0, 0, 1}, {1, 0, 0, 0}, {1, 0, 0, 0}};
  std::vector<std::vector<int64_t>> steps;
  for (int64_t t = 0; t < 25; ++t) steps.push_back({1, 0, t < 3, t < 21});
  const std::vector<std::vector<int64_t>> pieces = {{0, 0, 2, 1}, {2, 0, 0, 17}, {18, 0, 1, 0}, {0, 0, 0, 0}, {5, 0, 0, 3}};
  EXPECT_LE(relative_error(ctx, logits_in_chunks(ctx, model, batch, prefill_then_steps), expected), 1e-10) << "prefill, then one by one";
  EXPECT_LE(relative_error(ctx, logits_in_chunks(ctx, model, batch, steps), expected), 1e-10) << "one by one";
  EXPECT_LE(relative_error(ctx, logits_in_chunks(ctx, model, batch, pieces), expected), 1e-10) << "in pieces";
}

void check_packing(const ModelConfig& config) {
  Context ctx(2);
  const HybridLm model(config);
  fill(ctx, model);
  const Packed batch = random_tokens(config.vocab_size, kLengths);
  const Tensor packed = full_logits(ctx, model, batch);
  for (int64_t s = 0; s < batch.seqs.count(); ++s) {
    const int64_t begin = batch.seqs.begin(s), end = batch.seqs.end(s);
    if (begin == end) continue;
    const Packed alone{{batch.tokens.begin() + begin, batch.tokens.begin() + end}, Sequences::single(end - begin)};
    EXPECT_LE(relative_error(ctx, full_logits(ctx, model, alone), contiguous(ctx, packed.slice(0, begin, end))), 1e-12) << "sequence " << s;
  }
}

void check_recompute(const ModelConfig& config, DType compute) {
  Context ctx(2);
  const HybridLm model(config);
  fill(ctx, model, DType::f32);
  set_compute_dtype(ctx, model, compute);
  const Packed batch = random_tokens(config.vocab_size, kLengths);
  const Tensor loss = run_loss(ctx, model, batch, true).loss;
  std::vector<Tensor> grads;
  for (const Parameter* parameter : model.parameters()) grads.push_back(copied(ctx, parameter->grad));
  for (const LossOptions& options : {LossOptions{.recompute = RecomputeLevel::block}, LossOptions{.recompute = RecomputeLevel::mlp},
                                     LossOptions{.recompute = RecomputeLevel::block, .recompute_layers = 2}}) {
    EXPECT_TRUE(same_bits(ctx, run_loss(ctx, model, batch, true, options).loss, loss));
    for (size_t p = 0; p < grads.size(); ++p) EXPECT_TRUE(same_bits(ctx, model.parameters()[p]->grad, grads[p])) << model.parameters()[p]->name;
  }
}

/// One seed's roundings may fall unluckily: the bound is on the mean of several.
void check_bf16(const ModelConfig& config) {
  constexpr int kSeeds = 8;
  double error = 0;
  for (int seed = 0; seed < kSeeds; ++seed) {
    Context ctx(2);
    const HybridLm model(config);
    initialize(ctx, model, DType::f32, 0.1, seed);
    const Packed batch = random_tokens(config.vocab_size, kLengths);
    const Tensor expected = full_logits(ctx, model, batch);
    set_compute_dtype(ctx, model, DType::bf16);
    const Tensor rounded = full_logits(ctx, model, batch);
    EXPECT_EQ(rounded.dtype(), DType::bf16);
    error += relative_error(ctx, converted(ctx, rounded, DType::f32), expected) / kSeeds;
  }
  EXPECT_LE(error, 4e-2);
}

class SmallModelTest : public ::testing::TestWithParam<std::string> {
 protected:
  const ModelConfig config_ = small_configs().at(GetParam());
};

TEST_P(SmallModelTest, Gradient) { check_gradient(config_); }
TEST_P(SmallModelTest, Decoding) { check_decoding(config_); }
TEST_P(SmallModelTest, PackedIsAlone) { check_packing(config_); }
TEST_P(SmallModelTest, RecomputeIsNone) {
  check_recompute(config_, DType::f32);
  check_recompute(config_, DType::bf16);
}
TEST_P(SmallModelTest, Bf16IsClose) { check_bf16(config_); }

std::vector<std::string> names() {
  std::vector<std::string> result;
  for (const auto& [name, config] : small_configs()) result.push_back(name);
  return result;
}
INSTANTIATE_TEST_SUITE_P(All, SmallModelTest, ::testing::ValuesIn(names()), [](const auto& info) { return info.param; });

TEST(HybridLm, FirstValues) {
  Context ctx(1);
  const HybridLm model(preset("tiny-gdn-3-1"));
  initialize(ctx, model, DType::f32, model.config().initializer_range, 1);
  for (const Parameter* parameter : model.parameters()) {
    const bool is_a_log = parameter->name.ends_with(".A_log"), is_dt = parameter->name.ends_with(".dt_bias");
    const bool is_norm = parameter->name.ends_with("norm.weight");
    EXPECT_EQ(parameter->decays(), !is_a_log && !is_dt && !is_norm) << parameter->name;
    for (double value : to_vector<double>(ctx, parameter->value)) {
      if (is_a_log) {
        EXPECT_LE(std::exp(value), 16.001);
      }
      if (is_dt) {
        EXPECT_GE(std::log1p(std::exp(value)), 0.99e-3);
        EXPECT_LE(std::log1p(std::exp(value)), 0.101);
      }
      if (is_norm) {
        EXPECT_EQ(value, 1);
      }
    }
  }
}

TEST(HybridLm, TiedHeadIsTheEmbedding) {
  ModelConfig config = preset("tiny-gla");
  const int64_t untied = HybridLm(config).num_parameters();
  config.tie_word_embeddings = true;
  const HybridLm model(config);
  EXPECT_EQ(model.num_parameters(), untied - 256 * 64);
  EXPECT_THROW(model.parameter("lm_head.weight"), Error);
  EXPECT_EQ(model.head().name, "model.embeddings.weight");
}

TEST(HybridLm, NextTokenTargets) {
  EXPECT_EQ(next_token_targets({5, 6, 7, 8}, Sequences({0, 3, 3, 4})), (std::vector<int64_t>{6, 7, -1, -1}));
  EXPECT_THROW(next_token_targets({5, 6}, Sequences::single(3)), Error);
}

TEST(State, WindowBoundsTheCacheAndCloneIsIndependent) {
  Context ctx(1);
  const HybridLm model(small_configs().at("transformer_all"));
  fill(ctx, model);
  State state = make_state(model, ctx, 1);
  const auto step = [&](State& s, int64_t token) { return model.hidden(ctx, from_vector<int64_t>(ctx, {token}, {1}), Sequences::single(1), &s); };
  for (int i = 0; i < 20; ++i) step(state, i);
  const int64_t bytes = state.bytes();
  for (int i = 0; i < 200; ++i) step(state, i % 23);
  EXPECT_EQ(state.bytes(), bytes) << "with a window the cache stops growing";
  EXPECT_EQ(state.positions[0], 220);
  State copy = state.clone(ctx);
  const Tensor expected = step(state, 3);
  step(state, 9);
  EXPECT_TRUE(same_bits(ctx, step(copy, 3), expected));
  Tape tape;
  const WithTape recording(ctx, &tape);
  EXPECT_THROW(step(state, 1), Error);
}

TEST(Cost, PublishedSizesArePlausible) {
  for (const std::string& name : preset_names()) {
    const ModelCost cost = model_cost(preset(name));
    const double low = name.starts_with("tiny") ? 2e5 : name.starts_with("340M") ? 2.9e8 : 1.2e9;
    const double high = name.starts_with("tiny") ? 6e5 : name.starts_with("340M") ? 4.6e8 : 1.7e9;
    EXPECT_GE(cost.parameters, low) << name;
    EXPECT_LE(cost.parameters, high) << name;
  }
}

TEST(Cost, ByHand) {
  const ModelCost pure = model_cost(small_configs().at("gla"), 100);
  EXPECT_EQ(pure.attention_flops_per_token, 0);
  EXPECT_EQ(pure.kv_bytes_per_token, 0);
  EXPECT_EQ(pure.state_bytes_per_sequence, 3 * 4 * 2 * 4 * 8);
  EXPECT_EQ(pure.recurrence_flops_per_token, 3.0 * 3 * 5 * 2 * 4 * 8);
  const ModelCost full = model_cost(small_configs().at("gla_hybrid"), 100);
  EXPECT_EQ(full.kv_bytes_per_token, 2 * 2 * 2 * 4);
  EXPECT_EQ(full.attention_flops_per_token, 3 * 4 * 16 * 50.5);
  const ModelCost windows = model_cost(small_configs().at("transformer_all"), 10);
  EXPECT_EQ(windows.kv_window, 3);
  EXPECT_NEAR(windows.attention_flops_per_token, 3 * 3 * 4 * 16 * (1 + 2 + 3 * 8) / 10.0, 1e-9);
}

}  // namespace
}  // namespace braid::testing
