// Model directories: config.json (keys as in flash-linear-attention) and model.safetensors, or shards that model.safetensors.index.json
// lists. What others' programs read, and what `braid --model DIR` takes.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "io/file.h"
#include "models/hybrid_lm.h"

namespace braid {

/// Writes `model` to `directory`: its configuration and every parameter, in `dtype` (f64, f32 or bf16).
///
/// Everything is written and synced in a temporary directory first: beside `directory` where there is none yet, which then appears whole
/// by one rename; inside it otherwise, and then its files are replaced by renames, config.json last. Any failure to write is an Error that
/// leaves what was there as it was. A crash between the renames leaves the new model, or, where the configuration changed too,
/// a directory without config.json, which nothing takes for a model; never one model's values under another's configuration.
/// Shards and index of the model that was there are removed; files of other names stay.
void save_model_directory(Context& ctx, const Path& directory, const HybridLm& model, DType dtype = DType::f32);

/// The configuration in a config.json. Throws Error that names the file.
ModelConfig read_model_config(const Path& file);

/// Fills the model's values (`dtype` f32 or f64) from a directory's tensors of any floating type. Throws Error that names the file when a
/// tensor is missing, has another shape, or has no place in the model. Known extras (a head of a tied model, rotary tables, the D that
/// Gated DeltaNet never reads) are passed over with a line in `notes`.
void load_model_values(Context& ctx, const Path& directory, const HybridLm& model, DType dtype, std::vector<std::string>& notes);
/// The model that a directory holds.
std::unique_ptr<HybridLm> load_model_directory(Context& ctx, const Path& directory, DType dtype, std::vector<std::string>& notes);

}  // namespace braid
