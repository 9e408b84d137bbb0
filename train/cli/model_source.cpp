#include "train/cli/model_source.h"

#include <iostream>

#include "io/checkpoint.h"
#include "io/model_directory.h"
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
  switch (source_kind(model)) {
    case SourceKind::model_directory:
      return read_model_config(fs::path(model) / "config.json");
    case SourceKind::run:
    case SourceKind::checkpoint:
      return parse_config(std::string_view(checkpoint_at(option, model).config()));
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
  if (kind == SourceKind::model_directory) {
    std::vector<std::string> notes;
    load_model_values(ctx, path, model, dtype, notes);
    for (const std::string& note : notes) std::cerr << "note: " << note << '\n';
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

}  // namespace braid::cli
