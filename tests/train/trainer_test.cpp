#include "train/trainer.h"

#include <gtest/gtest.h>

#include <barrier>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <thread>

#include "tests/train/tiny_model.h"
#include "train/data_loader.h"

namespace braid::testing {
namespace {

constexpr int64_t kVocab = 50;

std::vector<WeightedSource> sources() { return {{make_token_source(numbered_documents({70, 3, 1, 40, 25, 60, 5}, kVocab)), 1}}; }

DataLoader loader(int64_t batch_tokens, const BatchShare& share = {}) {
  return DataLoader(sources(), {.batch_tokens = batch_tokens, .context = 8, .seed = 3, .shuffle = true, .share = share});
}

TrainOptions options(int64_t steps, double peak = 0.01) {
  TrainOptions result;
  result.schedule = {.kind = ScheduleKind::cosine, .peak = peak, .steps = steps, .warmup = 2};
  return result;
}

/// Threads of one process as ranks.
struct Gathering {
  explicit Gathering(int num_ranks) : barrier(num_ranks), parts(num_ranks) {}
  std::barrier<> barrier;
  std::vector<Tensor> parts;
};
class ThreadCommunicator final : public Communicator {
 public:
  ThreadCommunicator(Gathering& gathering, int rank) : gathering_(gathering), rank_(rank) {}
  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(gathering_.parts.size()); }
  void all_reduce(Context&, const Tensor& inout, Reduction) override {
    gathering_.parts[rank_] = inout;
    gathering_.barrier.arrive_and_wait();
    std::vector<double> total(inout.numel());
    for (const Tensor& part : gathering_.parts)
      for (int64_t i = 0; i < part.numel(); ++i) total[i] += part.dtype() == DType::f64 ? part.data<double>()[i] : part.data<float>()[i];
    gathering_.barrier.arrive_and_wait();
    for (int64_t i = 0; i < inout.numel(); ++i)
      if (inout.dtype() == DType::f64) inout.data<double>()[i] = total[i];
      else inout.data<float>()[i] = static_cast<float>(total[i]);
    gathering_.barrier.arrive_and_wait();
  }
  void reduce_scatter(Context&, const Tensor&, const Tensor&) override { fail("not used"); }
  void all_gather(Context&, const Tensor&, const Tensor&) override { fail("not used"); }
  void broadcast(Context&, const Tensor&, int) override { fail("not used"); }
  void send(Context&, const Tensor&, int) override { fail("not used"); }
  void receive(Context&, const Tensor&, int) override { fail("not used"); }
  void barrier() override { gathering_.barrier.arrive_and_wait(); }

 private:
  Gathering& gathering_;
  int rank_;
};

struct Trained {
  std::vector<double> values, losses;
};

Trained train(int64_t batch_tokens, const BatchShare& share, Gathering* gathering = nullptr) {
  Context ctx;
  TinyModel model(ctx, kVocab, 8, DType::f64);
  DataLoader data = loader(batch_tokens, share);
  std::optional<ThreadCommunicator> communicator;
  if (gathering) communicator.emplace(*gathering, share.rank);
  Trainer trainer(ctx, model, model.score(), data, options(6), communicator ? &*communicator : nullptr);
  Trained result;
  while (!trainer.finished()) result.losses.push_back(trainer.step().loss);
  result.values = model.values(ctx);
  return result;
}

void expect_near(const Trained& a, const Trained& b) {
  ASSERT_EQ(a.losses.size(), b.losses.size());
  for (size_t i = 0; i < a.losses.size(); ++i) EXPECT_NEAR(a.losses[i], b.losses[i], 1e-12);
  for (size_t i = 0; i < a.values.size(); ++i) ASSERT_NEAR(a.values[i], b.values[i], 1e-10);
}

TEST(Trainer, AccumulationIsOneLargeBatch) {
  const Trained whole = train(64, {});
  expect_near(whole, train(64, {0, 1, 2}));
  expect_near(whole, train(64, {0, 1, 8}));
}

TEST(Trainer, RanksAreOneRankWithTheirBatchesTogether) {
  Gathering gathering(2);
  Trained by_rank[2];
  std::thread other([&] { by_rank[1] = train(64, {1, 2, 2}, &gathering); });
  by_rank[0] = train(64, {0, 2, 2}, &gathering);
  other.join();
  EXPECT_EQ(by_rank[0].values, by_rank[1].values);
  expect_near(train(64, {}), by_rank[0]);
}

/// The same batch again and again; some of them poisoned.
class OneBatch final : public BatchSource {
 public:
  StepBatch next(Context& ctx) override {
    ++count_;
    const std::vector<int64_t> tokens = {1, 2, 3, 4, 5, 6, 7, 8}, targets = {9, 8, 7, 6, 5, 4, 3, -1};
    StepBatch step;
    step.micro_batches.push_back({from_vector(ctx, tokens, {8}), from_vector(ctx, targets, {8}), Sequences::single(8), 7});
    step.num_tokens = 8;
    step.num_targets = 7;
    return step;
  }
  DataPosition position() const override { return {{count_}, 1}; }
  void restore(const DataPosition& position) override { count_ = position.drawn.at(0); }

 private:
  int64_t count_ = 0;
};

TEST(Trainer, OverfitsOneBatch) {
  for (DType dtype : {DType::f32, DType::bf16}) {
    Context ctx;
    TinyModel model(ctx, 10, 16);
    OneBatch data;
    TrainOptions with = options(120, 0.05);
    with.compute_dtype = dtype;
    Trainer trainer(ctx, model, dtype == DType::f32 ? model.score() : [&](Context& context, const Batch& batch, const LossOptions& o) {
      const Tensor x = apply<Embedding>(context, {batch.tokens, model.parameter("embedding.weight").use(context)}).y;
      const auto out = apply<LinearCrossEntropy>(context, {x, model.parameter("head.weight").use(context), batch.targets}, {.denominator = o.denominator});
      return LossOutput{out.loss, out.token_loss, out.prediction};
    }, data, with);
    double loss = 0;
    while (!trainer.finished()) loss = trainer.step().loss;
    EXPECT_LT(loss, 0.1) << dtype;
  }
}

/// A model's score whose loss is multiplied by `factor(step)`.
template <class Factor>
ScoreFunction disturbed(const TinyModel& model, int64_t& step, Factor factor) {
  return [&model, &step, factor, plain = model.score()](Context& ctx, const Batch& batch, const LossOptions& given) {
    LossOptions changed = given;
    changed.denominator /= factor(step++);
    return plain(ctx, batch, changed);
  };
}

TEST(Trainer, SkipsStepsThatAreNotFinite) {
  Context ctx;
  TinyModel model(ctx, 10, 16);
  OneBatch data;
  int64_t step = 0;
  const auto factor = [](int64_t at) { return at == 3 || at == 5 ? std::numeric_limits<double>::infinity() : 1; };
  const ScoreFunction broken = [&, plain = model.score()](Context& context, const Batch& batch, const LossOptions& given) {
    LossOutput output = plain(context, batch, given);
    if (!std::isfinite(factor(step++))) output.loss.data<float>()[0] = std::numeric_limits<float>::quiet_NaN();
    return output;
  };
  Trainer trainer(ctx, model, broken, data, options(8));
  for (int64_t i = 0; i < 8; ++i) {
    const std::vector<double> before = model.values(ctx);
    const StepReport report = trainer.step();
    EXPECT_EQ(report.skipped, i == 3 || i == 5);
    EXPECT_EQ(model.values(ctx) == before, report.skipped);
  }
  EXPECT_EQ(trainer.num_skipped(), 2);
  EXPECT_EQ(trainer.optimizer().num_updates(), 6);
}

TEST(Trainer, SkipsSpikesAndStopsAfterTooMany) {
  Context ctx;
  TinyModel model(ctx, 10, 16);
  OneBatch data;
  int64_t step = 0;
  TrainOptions with = options(100, 1e-4);
  with.max_skipped_in_row = 3;
  Trainer trainer(ctx, model, disturbed(model, step, [](int64_t at) { return at == 30 || at >= 40 ? 10.0 : 1.0; }), data, with);
  for (int64_t i = 0; i < 42; ++i) EXPECT_EQ(trainer.step().skipped, i == 30 || i >= 40) << i;
  const std::vector<double> before = model.values(ctx);
  const std::string message = error_of([&] { trainer.step(); });
  EXPECT_NE(message.find("3 steps in a row"), std::string::npos) << message;
  EXPECT_EQ(model.values(ctx), before);
}

double seconds_of(const StepReport& report, int64_t batch_tokens) { return static_cast<double>(batch_tokens) / report.tokens_per_s; }

TEST(Trainer, AStepsTimeIsItsOwn) {
  constexpr auto kPause = std::chrono::milliseconds(300);
  constexpr int64_t kTokens = 32;
  Context ctx;
  TinyModel model(ctx, kVocab, 8);
  DataLoader data = loader(kTokens);
  Trainer trainer(ctx, model, model.score(), data, options(4));
  trainer.start_step();
  trainer.start_step();
  std::this_thread::sleep_for(kPause);  // both are begun, neither is waited for yet
  EXPECT_LT(seconds_of(trainer.finish_step(), kTokens), 0.1);
  std::this_thread::sleep_for(kPause);
  trainer.start_step();
  EXPECT_LT(seconds_of(trainer.finish_step(), kTokens), 0.1);
  const StepReport last = trainer.finish_step();
  EXPECT_LT(seconds_of(last, kTokens), 0.1);
  EXPECT_LT(last.time, 0.3);
}

TEST(Trainer, ResumesBitForBit) {
  const TemporaryDirectory directory;
  std::vector<double> values, losses;
  for (bool broken_off : {false, true}) {
    Context ctx;
    ctx.random = Random(4);
    auto model = std::make_unique<TinyModel>(ctx, kVocab, 8);
    DataLoader data = loader(32);
    std::optional<Trainer> trainer(std::in_place, ctx, *model, model->score(), data, options(6));
    std::vector<double> seen;
    for (int i = 0; i < 3; ++i) seen.push_back(trainer->step().loss);
    ctx.random.next_u64();
    Context other_ctx;
    std::optional<DataLoader> other_data;
    if (broken_off) {
      write_checkpoint(ctx, directory.path(), trainer->checkpoint("{}"));
      model = std::make_unique<TinyModel>(other_ctx, kVocab, 8, DType::f32, 99);
      other_data.emplace(loader(32));
      trainer.emplace(other_ctx, *model, model->score(), *other_data, options(6));
      trainer->restore(CheckpointReader(list_checkpoints(directory.path()).at(0)));
      EXPECT_EQ(trainer->steps_done(), 3);
      EXPECT_EQ(other_ctx.random.state(), ctx.random.state());
    }
    while (!trainer->finished()) seen.push_back(trainer->step().loss);
    if (!broken_off) {
      values = model->values(ctx);
      losses = seen;
    } else {
      EXPECT_EQ(values, model->values(other_ctx));
      EXPECT_EQ(losses, seen);
    }
  }
}

TEST(Trainer, RefusesACheckpointOfAnotherModelOrOtherData) {
  const TemporaryDirectory directory;
  Context ctx;
  TinyModel model(ctx, kVocab, 8), wide(ctx, kVocab, 9);
  DataLoader data = loader(32);
  Trainer trainer(ctx, model, model.score(), data, options(6));
  trainer.step();
  const CheckpointReader saved(write_checkpoint(ctx, directory.path(), trainer.checkpoint("{\"a\": 1}")));
  EXPECT_EQ(saved.config(), "{\"a\": 1}");
  Trainer other(ctx, wide, wide.score(), data, options(6));
  EXPECT_NE(error_of([&] { other.restore(saved); }).find("embedding.weight"), std::string::npos);
  OneBatch unlike;
  DataLoader changed(sources(), {.batch_tokens = 32, .context = 16, .seed = 3, .shuffle = true, .share = {}});
  Trainer third(ctx, model, model.score(), changed, options(6));
  EXPECT_NE(error_of([&] { third.restore(saved); }).find("data"), std::string::npos);
}

TEST(Trainer, RefusesOptionsOutOfRange) {
  Context ctx;
  TinyModel model(ctx, kVocab, 8);
  DataLoader data = loader(32);
  const auto with = [&](auto change) {
    TrainOptions wrong = options(6);
    change(wrong);
    return error_of([&] { Trainer(ctx, model, model.score(), data, wrong); });
  };
  EXPECT_NE(with([](TrainOptions& o) { o.schedule.steps = 0; }), "");
  EXPECT_NE(with([](TrainOptions& o) { o.max_grad_norm = -1; }), "");
  EXPECT_NE(with([](TrainOptions& o) { o.spike_margin = -1; }), "");
  EXPECT_NE(with([](TrainOptions& o) { o.max_skipped_in_row = 0; }), "");
  EXPECT_NE(with([](TrainOptions& o) { o.compute_dtype = DType::i64; }), "");
  EXPECT_NE(with([](TrainOptions& o) { o.adamw.beta1 = 2; }), "");
}

}  // namespace
}  // namespace braid::testing
