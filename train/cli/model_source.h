// Models as a user names them: a preset, a model directory, a run, a checkpoint, a config.json.
#pragma once
#include <memory>
#include <string>

#include "io/checkpoint.h"
#include "models/hybrid_lm.h"

namespace braid::cli {

enum class SourceKind : uint8_t { other, model_directory, run, checkpoint };

/// What lies at `path`, by the files it holds; a run with checkpoints that holds a model directory too is a run: training goes on there.
/// `other`: anything else, or nothing.
SourceKind source_kind(const std::string& path);

/// The checkpoint that `path`, a run or a checkpoint, stands for. What was passed over for it is told on stderr.
CheckpointReader named_checkpoint(const std::string& option, const std::string& path);

/// Throw Error, naming the option, where a run (a model directory) is not to be written: where the other is, it would be unclear which of
/// the two weights `path` names.
void require_place_for_run(const std::string& option, const std::string& path);
void require_place_for_model(const std::string& option, const std::string& path);

/// The configuration that `model` names: a config.json, a model directory, a run or checkpoint, else a preset. Throws Error of one
/// line that names `option`.
ModelConfig named_config(const std::string& option, const std::string& model);

/// A model with its values (f32 or f64 masters) from a model directory, a checkpoint, or a run's newest whole checkpoint. Throws Error
/// that names `option` when `path` is none of these, or the file that is at fault.
std::unique_ptr<HybridLm> load_named_model(Context& ctx, const std::string& option, const std::string& path, DType dtype);
/// The same into a model that is there; its configuration must fit.
void load_named_values(Context& ctx, const std::string& option, const std::string& path, const HybridLm& model, DType dtype);

}  // namespace braid::cli
