#include "train/cli/model_source.h"

#include <iostream>
#include <map>
#include <set>

#include "io/checkpoint.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "models/presets.h"

namespace braid::cli {
namespace fs = std::filesystem;
namespace {

/// The checkpoint that `path`, a run or a checkpoint, stands for. What was passed over is told on stderr.
CheckpointReader checkpoint_at(const std::string& option, const std::string& path) {
  if (source_kind(path) == SourceKind::checkpoint) return CheckpointReader(path);
  std::vector<std::string> notes;
  auto newest = newest_whole_checkpoint(path, notes);
  if (!newest) fail(option, " must hold a whole checkpoint, got ", path, notes.empty() ? "" : ": " + notes.back());
  for (const std::string& note : notes) std::cerr << note << '\n';
  return std::move(*newest);
}

[[noreturn]] void refuse_source(const std::string& option, const std::string& path) {
  fail(option, " must be a model directory (with config.json), a run or a checkpoint, got ", path);
}

/// Every tensor of a model directory: one safetensors file, or the shards an index lists.
class DirectoryTensors {
 public:
  explicit DirectoryTensors(const fs::path& directory) : directory_(directory) {
    const fs::path whole = directory / "model.safetensors", index = directory / "model.safetensors.index.json";
    if (fs::exists(whole)) {
      add(whole);
      return;
    }
    BRAID_CHECK(fs::exists(index), directory.string(), ": expected model.safetensors or model.safetensors.index.json, got neither");
    const Json json = read_json(index);
    std::map<std::string, bool> shards;
    for (const auto& [tensor, shard] : required<Json>(index.string(), json, "weight_map").items()) {
      BRAID_CHECK(shard.is_string() && fs::path(shard.get<std::string>()).filename() == fs::path(shard.get<std::string>()), index.string(),
                  ": the shard of ", tensor, " must be a file name, got ", shard.dump());
      shards[shard.get<std::string>()] = true;
    }
    for (const auto& [shard, unused] : shards) add(directory / shard);
  }
  Tensor get(const Parameter& parameter) const {
    const auto found = file_of_.find(parameter.name);
    BRAID_CHECK(found != file_of_.end(), directory_.string(), ": expected the tensor ", parameter.name, " ", parameter.shape,
                ", got none of that name");
    const Tensor tensor = files_[found->second].get(parameter.name);
    BRAID_CHECK(tensor.shape() == parameter.shape && is_floating(tensor.dtype()), directory_.string(), ": ", parameter.name, " must be ",
                parameter.shape, " of a floating type, got ", tensor.dtype(), " ", tensor.shape());
    return tensor;
  }
  /// Tensors the model has no place for: known extras are told of on stderr, others are an Error.
  void require_no_others(const HybridLm& model) const {
    std::set<std::string> known;
    for (const Parameter* parameter : model.parameters()) known.insert(parameter->name);
    for (const auto& [name, file] : file_of_) {
      if (known.count(name)) continue;
      // Some checkpoints carry a D that Gated DeltaNet never reads, the head of a tied model, and rotary tables.
      const bool harmless =
          name.ends_with(".attn.D") || name.ends_with("rotary.inv_freq") || (name == "lm_head.weight" && model.config().tie_word_embeddings);
      BRAID_CHECK(harmless, directory_.string(), ": expected no tensor ", name, ", the configuration has no place for it");
      std::cerr << "note: " << directory_.string() << ": " << name << " is ignored\n";
    }
  }

 private:
  void add(const fs::path& path) {
    files_.emplace_back(path);
    for (const auto& entry : files_.back().entries()) file_of_[entry.name] = files_.size() - 1;
  }
  fs::path directory_;
  std::vector<Safetensors> files_;
  std::map<std::string, size_t> file_of_;
};

Tensor placed(Context& ctx, const Tensor& tensor, DType dtype) {
  Context host(1);
  return copied(ctx, converted(host, tensor, dtype));
}

}  // namespace

SourceKind source_kind(const std::string& path) {
  std::error_code error;
  const fs::path directory(path);
  if (!fs::is_directory(directory, error)) return SourceKind::other;
  if (fs::exists(directory / "manifest.json", error)) return SourceKind::checkpoint;
  if (fs::exists(directory / "config.json", error)) return SourceKind::model_directory;
  return fs::is_directory(directory / "checkpoints", error) ? SourceKind::run : SourceKind::other;
}

ModelConfig named_config(const std::string& option, const std::string& model) {
  std::error_code error;
  const auto parsed = [](const fs::path& path) {
    const Json json = read_json(path);
    try {
      return parse_config(json);
    } catch (const Error& mistake) {
      fail(path.string(), ": ", mistake.what());
    }
  };
  switch (source_kind(model)) {
    case SourceKind::model_directory:
      return parsed(fs::path(model) / "config.json");
    case SourceKind::run:
    case SourceKind::checkpoint:
      return parse_config(std::string_view(checkpoint_at(option, model).config()));
    case SourceKind::other:
      break;
  }
  if (fs::is_directory(model, error)) refuse_source(option, model);
  if (fs::is_regular_file(model, error)) return parsed(model);
  try {
    return preset(model);
  } catch (const Error& mistake) {
    fail(option, " must be a preset, a model directory or a config.json, got ", model, ", which is no file; ", mistake.what());
  }
}

void load_named_values(Context& ctx, const std::string& option, const std::string& path, const HybridLm& model, DType dtype) {
  const SourceKind kind = source_kind(path);
  if (kind == SourceKind::other) refuse_source(option, path);
  if (kind == SourceKind::model_directory) {
    const DirectoryTensors tensors{path};
    tensors.require_no_others(model);
    for (Parameter* parameter : model.parameters()) parameter->value = placed(ctx, tensors.get(*parameter), dtype);
    return;
  }
  const CheckpointReader checkpoint = checkpoint_at(option, path);
  for (Parameter* parameter : model.parameters()) {
    const Tensor tensor = checkpoint.read(ctx, CheckpointReader::Group::parameters, parameter->name);
    BRAID_CHECK(tensor.shape() == parameter->shape, path, ": ", parameter->name, " must be ", parameter->shape, ", got ", tensor.shape());
    parameter->value = converted(ctx, tensor, dtype);
  }
}

std::unique_ptr<HybridLm> load_named_model(Context& ctx, const std::string& option, const std::string& path, DType dtype) {
  if (source_kind(path) == SourceKind::other) refuse_source(option, path);
  auto model = std::make_unique<HybridLm>(named_config(option, path));
  load_named_values(ctx, option, path, *model, dtype);
  return model;
}

void save_model_directory(Context& ctx, const HybridLm& model, const std::string& path, DType dtype) {
  std::vector<NamedTensor> tensors;
  for (const Parameter* parameter : model.parameters()) tensors.push_back({parameter->name, converted(ctx, parameter->value, dtype)});
  make_directories(path);
  Json config = to_json(model.config());
  config["torch_dtype"] = dtype == DType::bf16 ? "bfloat16" : "float32";
  write_safetensors(ctx, fs::path(path) / "model.safetensors", tensors, {{"format", "pt"}});
  // A directory that is written over must not keep an index to other shards.
  remove_path(fs::path(path) / "model.safetensors.index.json");
  write_json(fs::path(path) / "config.json", config);
}

}  // namespace braid::cli
