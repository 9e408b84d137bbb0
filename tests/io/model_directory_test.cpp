#include "io/model_directory.h"

#include <sys/wait.h>

#include "io/json.h"
#include "io/safetensors.h"
#include "tests/io/io_support.h"

namespace braid {
namespace {

using testing::expect_error;
using testing::FullDisk;
using testing::message_of;
using testing::TempDir;

ModelConfig config(double rope_theta = 10000, bool tied = false) {
  Json json = {{"model_type", "gla"},
               {"hidden_size", 16},
               {"num_hidden_layers", 2},
               {"vocab_size", 11},
               {"num_heads", 2},
               {"intermediate_size", 16},
               {"tie_word_embeddings", tied},
               {"attn", {{"layers", {1}}, {"num_heads", 2}, {"rope_theta", rope_theta}}}};
  return parse_config(json);
}

std::unique_ptr<HybridLm> model_of(Context& ctx, uint64_t seed, const ModelConfig& config = braid::config()) {
  auto model = std::make_unique<HybridLm>(config);
  initialize(ctx, *model, DType::f32, 0.5, seed);
  return model;
}

std::vector<std::vector<double>> values(Context& ctx, const HybridLm& model) {
  std::vector<std::vector<double>> all;
  for (const Parameter* parameter : model.parameters()) all.push_back(to_vector<double>(ctx, parameter->value));
  return all;
}

std::vector<std::vector<double>> loaded_values(Context& ctx, const Path& directory) {
  std::vector<std::string> notes;
  return values(ctx, *load_model_directory(ctx, directory, DType::f32, notes));
}

std::vector<NamedTensor> entries_of(const HybridLm& model) {
  std::vector<NamedTensor> tensors;
  for (const Parameter* parameter : model.parameters()) tensors.push_back({parameter->name, parameter->value});
  return tensors;
}

std::vector<std::string> names_in(const Path& directory) {
  std::vector<std::string> names;
  for (const Path& path : list_directory(directory)) names.push_back(path.filename().string());
  return names;
}

/// A directory as others write large models: the tensors in two shards that an index lists.
void write_shards(Context& ctx, const Path& directory, const HybridLm& model) {
  make_directories(directory);
  write_json(directory / "config.json", to_json(model.config()));
  std::vector<NamedTensor> shards[2];
  Json weight_map = Json::object();
  int next = 0;
  for (NamedTensor& named : entries_of(model)) {
    weight_map[named.name] = "model-0000" + std::to_string(next + 1) + "-of-00002.safetensors";
    shards[next].push_back(std::move(named));
    next = 1 - next;
  }
  for (int i : {0, 1}) write_safetensors(ctx, directory / ("model-0000" + std::to_string(i + 1) + "-of-00002.safetensors"), shards[i]);
  write_json(directory / "model.safetensors.index.json", {{"metadata", {{"total_size", 1}}}, {"weight_map", weight_map}});
}

TEST(ModelDirectory, HoldsTheModelThatWasSaved) {
  Context ctx;
  const TempDir dir;
  for (bool tied : {false, true}) {
    const auto model = model_of(ctx, 1, config(5e5, tied));
    for (const DType dtype : {DType::f64, DType::f32, DType::bf16}) {
      save_model_directory(ctx, dir / "a/b/", *model, dtype);
      EXPECT_EQ(names_in(dir / "a"), std::vector<std::string>{"b"});
      EXPECT_EQ(names_in(dir / "a/b"), (std::vector<std::string>{"config.json", "model.safetensors"}));
      std::vector<std::string> notes;
      const auto loaded = load_model_directory(ctx, dir / "a/b", DType::f64, notes);
      EXPECT_TRUE(notes.empty());
      EXPECT_EQ(loaded->config(), model->config());
      for (size_t i = 0; i < model->parameters().size(); ++i) {
        const Parameter& want = *model->parameters()[i];
        EXPECT_EQ(to_vector<double>(ctx, loaded->parameters()[i]->value), to_vector<double>(ctx, converted(ctx, want.value, dtype))) << want.name;
      }
    }
    EXPECT_EQ(read_json(dir / "a/b/config.json")["torch_dtype"], "bfloat16");
  }
  expect_error("dtype must be f64, f32 or bf16, got i64", [&] { save_model_directory(ctx, dir / "c", *model_of(ctx, 1), DType::i64); });
  expect_error("must have a value", [&] { save_model_directory(ctx, dir / "c", HybridLm(config())); });
  EXPECT_EQ(names_in(dir.path()), std::vector<std::string>{"a"});
}

TEST(ModelDirectory, HalfPrecisionIsRead) {
  Context ctx;
  const TempDir dir;
  const auto model = model_of(ctx, 1);
  save_model_directory(ctx, dir / "m", *model);
  std::vector<NamedTensor> tensors = entries_of(*model);
  Tensor& first = tensors[0].tensor;
  first = Tensor::empty(ctx, first.shape(), DType::f16);
  for (int64_t i = 0; i < first.numel(); ++i) first.data<f16>()[i].bits = 0x3e00;  // 1.5
  write_safetensors(ctx, dir / "m/model.safetensors", tensors);
  EXPECT_EQ(loaded_values(ctx, dir / "m")[0], std::vector<double>(first.numel(), 1.5));
}

TEST(ModelDirectory, ShardsAreReadAsOneModel) {
  Context ctx;
  const TempDir dir;
  const auto model = model_of(ctx, 2);
  write_shards(ctx, dir / "m", *model);
  EXPECT_EQ(loaded_values(ctx, dir / "m"), values(ctx, *model));
  const Path index = dir / "m/model.safetensors.index.json";
  const Json whole = read_json(index);
  const auto with = [&](const char* tensor, const Json& shard) {
    Json changed = whole;
    changed["weight_map"][tensor] = shard;
    write_json(index, changed);
    return message_of([&] { loaded_values(ctx, dir / "m"); });
  };
  const char* first = "model.embeddings.weight";
  EXPECT_NE(with(first, "../model.safetensors").find("must be a file name"), std::string::npos);
  EXPECT_NE(with(first, 3).find("must be a file name"), std::string::npos);
  EXPECT_NE(with(first, "").find("must be a file name"), std::string::npos);
  EXPECT_NE(with(first, "..").find(".."), std::string::npos);
  EXPECT_NE(with(first, "none.safetensors").find("none.safetensors: No such file"), std::string::npos);
  EXPECT_NE(with(first, "model-00002-of-00002.safetensors").find("must be in model-00002"), std::string::npos);
  EXPECT_NE(with("extra.weight", "model-00002-of-00002.safetensors").find("extra.weight must be in"), std::string::npos);
  write_json(index, {{"weight_map", 1}});
  expect_error("weight_map must be an object", [&] { loaded_values(ctx, dir / "m"); });
  remove_path(index);
  expect_error("expected model.safetensors or model.safetensors.index.json", [&] { loaded_values(ctx, dir / "m"); });
}

TEST(ModelDirectory, TensorsThatDoNotFitAreNamed) {
  Context ctx;
  const TempDir dir;
  const auto model = model_of(ctx, 3, config(10000, true));
  save_model_directory(ctx, dir / "m", *model);
  const auto with = [&](auto change) {
    std::vector<NamedTensor> tensors = entries_of(*model);
    change(tensors);
    write_safetensors(ctx, dir / "m/model.safetensors", tensors);
  };
  with([](auto& tensors) { tensors.erase(tensors.begin() + 1); });
  expect_error("expected the tensor " + model->parameters()[1]->name, [&] { loaded_values(ctx, dir / "m"); });
  with([&](auto& tensors) { tensors[0].tensor = Tensor::zeros(ctx, {3, 2}, DType::f32); });
  expect_error("model.embeddings.weight must be [11, 16] of a floating type, got f32 [3, 2]", [&] { loaded_values(ctx, dir / "m"); });
  with([&](auto& tensors) { tensors[0].tensor = Tensor::zeros(ctx, {11, 16}, DType::i64); });
  expect_error("got i64 [11, 16]", [&] { loaded_values(ctx, dir / "m"); });
  with([&](auto& tensors) { tensors.push_back({"model.surprise", Tensor::zeros(ctx, {1}, DType::f32)}); });
  expect_error("expected no tensor model.surprise", [&] { loaded_values(ctx, dir / "m"); });
  with([&](auto& tensors) { tensors.push_back({"lm_head.weight", Tensor::zeros(ctx, {1}, DType::f32)}); });
  std::vector<std::string> notes;
  EXPECT_EQ(values(ctx, *load_model_directory(ctx, dir / "m", DType::f32, notes)), values(ctx, *model));
  ASSERT_EQ(notes.size(), 1u);
  EXPECT_NE(notes[0].find("lm_head.weight is ignored"), std::string::npos);
  write_file(dir / "m/config.json", "{\"model_type\": \"gla\", \"num_heads\": 0}");
  expect_error((dir / "m/config.json").string() + ": num_heads", [&] { loaded_values(ctx, dir / "m"); });
}

TEST(ModelDirectory, AnotherModelsShardsGoAndOtherFilesStay) {
  Context ctx;
  const TempDir dir;
  write_shards(ctx, dir / "m", *model_of(ctx, 4));
  write_file(dir / "m/tokenizer.json", "{}");
  write_file(dir / "m/adapter.safetensors", "mine");
  const auto model = model_of(ctx, 5, config(777));
  save_model_directory(ctx, dir / "m", *model);
  EXPECT_EQ(loaded_values(ctx, dir / "m"), values(ctx, *model));
  EXPECT_EQ(names_in(dir / "m"), (std::vector<std::string>{"adapter.safetensors", "config.json", "model.safetensors", "tokenizer.json"}));
}

TEST(ModelDirectory, WhatCannotBeWrittenLeavesWhatWasThere) {
  Context ctx;
  const TempDir dir;
  const auto model = model_of(ctx, 6), other = model_of(ctx, 7, config(777));
  save_model_directory(ctx, dir / "m", *model);
  for (int64_t limit : {0, 100, 8000}) {
    const FullDisk full(limit);
    for (const char* name : {"m", "new", "new/below"}) EXPECT_NE(message_of([&] { save_model_directory(ctx, dir / name, *other); }), "");
  }
  EXPECT_EQ(names_in(dir.path()), (std::vector<std::string>{"m", "new"}));
  EXPECT_TRUE(names_in(dir / "new").empty());
  EXPECT_EQ(names_in(dir / "m").size(), 2u);
  EXPECT_EQ(loaded_values(ctx, dir / "m"), values(ctx, *model));
  write_file(dir / "file", "");
  expect_error("file", [&] { save_model_directory(ctx, dir / "file", *model); });
  expect_error("file", [&] { save_model_directory(ctx, dir / "file/m", *model); });
  expect_error("does not name a file", [&] { save_model_directory(ctx, "", *model); });
}

TEST(ModelDirectory, KilledWhileItIsReplacedItIsOneModelOrNone) {
  Context ctx;
  const TempDir dir;
  const std::unique_ptr<HybridLm> models[] = {model_of(ctx, 8), model_of(ctx, 9, config(777))};
  save_model_directory(ctx, dir / "m", *models[0]);
  int num_kills = 0;
  for (int attempt = 0; attempt < 40; ++attempt) {
    const pid_t child = ::fork();
    if (child == 0) {
      for (int i = 0;; ++i) save_model_directory(ctx, dir / "m", *models[i % 2]);
    }
    ::usleep(static_cast<useconds_t>(500 + 700 * attempt));
    ::kill(child, SIGKILL);
    int status = 0;
    ::waitpid(child, &status, 0);
    num_kills += WIFSIGNALED(status);
    if (!std::filesystem::exists(dir / "m/config.json")) continue;
    std::vector<std::string> notes;
    const auto found = load_model_directory(ctx, dir / "m", DType::f32, notes);
    const HybridLm& same = found->config() == models[0]->config() ? *models[0] : *models[1];
    EXPECT_EQ(found->config(), same.config());
    EXPECT_EQ(values(ctx, *found), values(ctx, same)) << "values of one model under the configuration of the other";
  }
  EXPECT_EQ(num_kills, 40);
  save_model_directory(ctx, dir / "m", *models[1]);
  EXPECT_EQ(loaded_values(ctx, dir / "m"), values(ctx, *models[1]));
}

}  // namespace
}  // namespace braid
