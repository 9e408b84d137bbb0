#include "io/model_directory.h"

#include <map>
#include <set>

#include "io/json.h"
#include "io/safetensors.h"

namespace braid {
namespace {

constexpr const char* kConfigFile = "config.json";
constexpr const char* kWholeFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";

/// Which shard holds each tensor, as an index says.
std::map<std::string, std::string> read_index(const Path& index) {
  std::map<std::string, std::string> shard_of;
  const Json weight_map = required<Json>(index.string(), read_json(index), "weight_map");
  BRAID_CHECK(weight_map.is_object(), index.string(), ": weight_map must be an object");
  for (const auto& [tensor, shard] : weight_map.items()) {
    // A name that leads out of the directory is never opened.
    BRAID_CHECK(shard.is_string() && !shard.get<std::string>().empty() && Path(shard.get<std::string>()).filename() == shard.get<std::string>(),
                index.string(), ": the shard of ", tensor, " must be a file name, got ", shard.dump(-1, ' ', true, Json::error_handler_t::replace));
    shard_of[tensor] = shard.get<std::string>();
  }
  return shard_of;
}

/// Every tensor of a model directory: one safetensors file, or the shards an index lists.
class DirectoryTensors {
 public:
  explicit DirectoryTensors(const Path& directory) : directory_(directory) {
    const Path whole = directory / kWholeFile, index = directory / kIndexFile;
    if (std::filesystem::exists(whole)) {
      const Safetensors& file = open(kWholeFile);
      for (const auto& entry : file.entries()) file_of_[entry.name] = &file;
      return;
    }
    BRAID_CHECK(std::filesystem::exists(index), directory.string(), ": expected ", kWholeFile, " or ", kIndexFile, ", got neither");
    for (const auto& [tensor, shard] : read_index(index)) {
      const Safetensors& file = open(shard);
      BRAID_CHECK(file.contains(tensor), index.string(), ": ", tensor, " must be in ", shard, ", which has no tensor of that name");
      file_of_[tensor] = &file;
    }
  }

  Tensor get(const Parameter& parameter) const {
    const auto found = file_of_.find(parameter.name);
    BRAID_CHECK(found != file_of_.end(), directory_.string(), ": expected the tensor ", parameter.name, " ", parameter.shape,
                ", got none of that name");
    Tensor tensor = found->second->get(parameter.name);
    BRAID_CHECK(tensor.shape() == parameter.shape && is_floating(tensor.dtype()), found->second->path().string(), ": ", parameter.name, " must be ",
                parameter.shape, " of a floating type, got ", tensor.dtype(), " ", tensor.shape());
    return tensor;
  }

  /// Tensors the model has no place for: known extras go to `notes`, others are an Error.
  void require_no_others(const HybridLm& model, std::vector<std::string>& notes) const {
    std::set<std::string> known;
    for (const Parameter* parameter : model.parameters()) known.insert(parameter->name);
    for (const auto& [name, file] : file_of_) {
      if (known.count(name)) continue;
      const bool harmless =
          name.ends_with(".attn.D") || name.ends_with("rotary.inv_freq") || (name == "lm_head.weight" && model.config().tie_word_embeddings);
      BRAID_CHECK(harmless, directory_.string(), ": expected no tensor ", name, ", the configuration has no place for it");
      notes.push_back(directory_.string() + ": " + name + " is ignored");
    }
  }

 private:
  const Safetensors& open(const std::string& name) {
    auto& file = files_[name];
    if (!file) file = std::make_unique<Safetensors>(directory_ / name);
    return *file;
  }
  Path directory_;
  std::map<std::string, std::unique_ptr<Safetensors>> files_;
  std::map<std::string, const Safetensors*> file_of_;
};

std::string_view torch_name(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return "float64";
    case DType::f32:
      return "float32";
    case DType::bf16:
      return "bfloat16";
    default:
      fail("save_model_directory: dtype must be f64, f32 or bf16, got ", dtype);
  }
}

void write_files(Context& ctx, const Path& directory, const HybridLm& model, DType dtype) {
  std::vector<NamedTensor> tensors;
  for (const Parameter* parameter : model.parameters()) {
    BRAID_CHECK(parameter->value, "save_model_directory: ", parameter->name, " must have a value, got none");
    tensors.push_back({parameter->name, converted(ctx, parameter->value, dtype)});
  }
  Json config = to_json(model.config());
  config["torch_dtype"] = torch_name(dtype);
  write_safetensors(ctx, directory / kWholeFile, tensors, {{"format", "pt"}});
  write_json(directory / kConfigFile, config);
}

/// Whether the values in `directory` may be replaced while its config.json stands.
bool has_configuration_of(const Path& directory, const HybridLm& model) {
  try {
    return read_model_config(directory / kConfigFile) == model.config();
  } catch (const Error&) {
    return false;  // damaged, or another program's
  }
}

/// The index and the shards it names; nothing of an index that cannot be read but itself.
std::vector<Path> former_shards(const Path& directory) {
  const Path index = directory / kIndexFile;
  if (!std::filesystem::exists(index)) return {};
  std::set<Path> paths;
  try {
    for (const auto& [tensor, shard] : read_index(index))
      if (shard != kWholeFile && shard.ends_with(".safetensors")) paths.insert(directory / shard);
  } catch (const Error&) {
    paths.clear();
  }
  std::vector<Path> in_order = {index};  // first: an index must not name files that are gone
  in_order.insert(in_order.end(), paths.begin(), paths.end());
  return in_order;
}

/// Puts the files of `staged` in the place of those in `directory`.
void replace_files(const Path& staged, const Path& directory, const HybridLm& model) {
  const std::vector<Path> former = former_shards(directory);
  if (!has_configuration_of(directory, model)) {
    remove_path(directory / kConfigFile);
    sync_path(directory);
  }
  rename_path(staged / kWholeFile, directory / kWholeFile);
  rename_path(staged / kConfigFile, directory / kConfigFile);
  sync_path(directory);
  for (const Path& path : former) remove_path(path);
}

}  // namespace

void save_model_directory(Context& ctx, const Path& directory, const HybridLm& model, DType dtype) {
  const Path place = directory.has_filename() ? directory : directory.parent_path();  // "DIR/" is DIR
  if (!std::filesystem::exists(place)) {
    if (place.has_parent_path()) make_directories(place.parent_path());
    AtomicDirectory whole(place);
    write_files(ctx, whole.temporary(), model, dtype);
    whole.commit();
    return;
  }
  make_directories(place);  // says what is wrong with it
  const StagingDirectory staging(place / "model");
  write_files(ctx, staging.path(), model, dtype);
  replace_files(staging.path(), place, model);
}

ModelConfig read_model_config(const Path& file) {
  const Json json = read_json(file);
  try {
    return parse_config(json);
  } catch (const Error& mistake) {
    // The configuration's errors begin with the file's usual name.
    std::string_view reason = mistake.what();
    if (reason.starts_with("config.json: ")) reason.remove_prefix(std::string_view("config.json: ").size());
    fail(file.string(), ": ", reason);
  }
}

void load_model_values(Context& ctx, const Path& directory, const HybridLm& model, DType dtype, std::vector<std::string>& notes) {
  const DirectoryTensors tensors(directory);
  tensors.require_no_others(model, notes);
  Context host(1);
  for (Parameter* parameter : model.parameters()) parameter->value = copied(ctx, converted(host, tensors.get(*parameter), dtype));
}

std::unique_ptr<HybridLm> load_model_directory(Context& ctx, const Path& directory, DType dtype, std::vector<std::string>& notes) {
  auto model = std::make_unique<HybridLm>(read_model_config(directory / kConfigFile));
  load_model_values(ctx, directory, *model, dtype, notes);
  return model;
}

}  // namespace braid
