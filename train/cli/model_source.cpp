#include "train/cli/model_source.h"

#include <iostream>

#include "io/checkpoint.h"
#include "io/model_directory.h"
#include "models/presets.h"

namespace braid::cli {
namespace fs = std::filesystem;
namespace {

bool holds(const std::string& directory, const char* name) {
  std::error_code error;
  return fs::exists(fs::path(directory) / name, error);
}

[[noreturn]] void refuse_source(const std::string& option, const std::string& path) {
  fail(option, " must be a model directory (with config.json), a run or a checkpoint, got ", path);
}

void load_directory(Context& ctx, const std::string& path, const HybridLm& model, DType dtype) {
  std::vector<std::string> notes;
  load_model_values(ctx, path, model, dtype, notes);
  for (const std::string& note : notes) std::cerr << "note: " << note << '\n';
}

void load_checkpoint(Context& ctx, const std::string& path, const CheckpointReader& checkpoint, const HybridLm& model, DType dtype) {
  for (Parameter* parameter : model.parameters()) {
    const Tensor tensor = checkpoint.read(ctx, CheckpointReader::Group::parameters, parameter->name);
    BRAID_CHECK(tensor.shape() == parameter->shape, path, ": ", parameter->name, " must be ", parameter->shape, ", got ", tensor.shape());
    parameter->value = converted(ctx, tensor, dtype);
  }
}

}  // namespace

SourceKind source_kind(const std::string& path) {
  std::error_code error;
  const fs::path directory(path);
  if (!fs::is_directory(directory, error)) return SourceKind::other;
  if (holds(path, "manifest.json")) return SourceKind::checkpoint;
  if (holds(path, "config.json")) return list_checkpoints(directory).empty() ? SourceKind::model_directory : SourceKind::run;
  return fs::is_directory(directory / "checkpoints", error) ? SourceKind::run : SourceKind::other;
}

CheckpointReader named_checkpoint(const std::string& option, const std::string& path) {
  if (source_kind(path) == SourceKind::checkpoint) return CheckpointReader(path);
  std::vector<std::string> notes;
  auto newest = newest_whole_checkpoint(path, notes);
  if (!newest) fail(option, " must hold a whole checkpoint, got ", path, notes.empty() ? "" : ": " + notes.back());
  for (const std::string& note : notes) std::cerr << note << '\n';
  if (holds(path, "config.json"))
    std::cerr << "note: " << path << " holds a run and a model directory; read was the run's " << newest->directory().string() << '\n';
  return std::move(*newest);
}

void require_place_for_run(const std::string& option, const std::string& path) {
  BRAID_CHECK(!holds(path, "config.json"), option, " must be a run or a new directory, got ", path,
              ", which holds a model directory (config.json); choose another directory, or take config.json away");
  BRAID_CHECK(!holds(path, "manifest.json"), option, " must be a run or a new directory, got the checkpoint ", path);
}

void require_place_for_model(const std::string& option, const std::string& path) {
  const SourceKind kind = source_kind(path);
  BRAID_CHECK(kind != SourceKind::run, option, " must be a model directory or a new one, got the run ", path, "; choose another directory");
  BRAID_CHECK(kind != SourceKind::checkpoint, option, " must be a model directory or a new one, got the checkpoint ", path);
}

ModelConfig named_config(const std::string& option, const std::string& model) {
  std::error_code error;
  switch (source_kind(model)) {
    case SourceKind::model_directory:
      return read_model_config(fs::path(model) / "config.json");
    case SourceKind::run:
    case SourceKind::checkpoint:
      return parse_config(std::string_view(named_checkpoint(option, model).config()));
    case SourceKind::other:
      break;
  }
  if (fs::is_directory(model, error)) refuse_source(option, model);
  if (fs::is_regular_file(model, error)) return read_model_config(model);
  try {
    return preset(model);
  } catch (const Error& mistake) {
    fail(option, " must be a preset, a model directory or a config.json, got ", model, ", which is no file; ", mistake.what());
  }
}

void load_named_values(Context& ctx, const std::string& option, const std::string& path, const HybridLm& model, DType dtype) {
  const SourceKind kind = source_kind(path);
  if (kind == SourceKind::other) refuse_source(option, path);
  if (kind == SourceKind::model_directory) load_directory(ctx, path, model, dtype);
  else load_checkpoint(ctx, path, named_checkpoint(option, path), model, dtype);
}

std::unique_ptr<HybridLm> load_named_model(Context& ctx, const std::string& option, const std::string& path, DType dtype) {
  const SourceKind kind = source_kind(path);
  if (kind == SourceKind::other) refuse_source(option, path);
  if (kind == SourceKind::model_directory) {
    auto model = std::make_unique<HybridLm>(named_config(option, path));
    load_directory(ctx, path, *model, dtype);
    return model;
  }
  const CheckpointReader checkpoint = named_checkpoint(option, path);  // looked for once: its checksums take time, its notes are said once
  auto model = std::make_unique<HybridLm>(parse_config(std::string_view(checkpoint.config())));
  load_checkpoint(ctx, path, checkpoint, *model, dtype);
  return model;
}

}  // namespace braid::cli
