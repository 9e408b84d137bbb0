#include "io/checkpoint.h"

#include <algorithm>
#include <array>
#include <charconv>

#include "io/file.h"
#include "io/hdf5.h"
#include "io/json.h"
#include "io/sha256.h"

namespace braid {
namespace {

constexpr std::string_view kFormat = "braid checkpoint";
constexpr int64_t kVersion = 1;
constexpr const char* kModelFile = "model.h5";
constexpr const char* kOptimizerFile = "optimizer.h5";
constexpr const char* kStateFile = "state.json";
constexpr const char* kManifestFile = "manifest.json";
constexpr std::array kFiles = {kModelFile, kOptimizerFile, kStateFile};
constexpr std::string_view kStepPrefix = "step-";

Path checkpoints_of(const Path& run) { return run / "checkpoints"; }

std::string step_name(int64_t step) {
  const std::string digits = std::to_string(step);
  return std::string(kStepPrefix) + std::string(std::max<size_t>(8, digits.size()) - digits.size(), '0') + digits;
}

/// The step a directory is named after; −1 for any other name.
int64_t step_of_name(const std::string& name) {
  if (!name.starts_with(kStepPrefix)) return -1;
  int64_t step = -1;
  const char* end = name.data() + name.size();
  const auto [stop, error] = std::from_chars(name.data() + kStepPrefix.size(), end, step);
  return error == std::errc() && stop == end && step >= 0 && name == step_name(step) ? step : -1;
}

void write_group(Context& ctx, Hdf5File& file, const std::string& group, const std::vector<NamedTensor>& tensors) {
  file.create_group(group);
  for (const NamedTensor& entry : tensors) file.write_tensor(ctx, group + "/" + entry.name, entry.tensor);
}

void write_files(Context& ctx, const Path& directory, const Checkpoint& checkpoint) {
  Hdf5File model = Hdf5File::create(directory / kModelFile);
  write_group(ctx, model, "parameters", checkpoint.parameters);
  model.close();
  Hdf5File optimizer = Hdf5File::create(directory / kOptimizerFile);
  write_group(ctx, optimizer, "m", checkpoint.first_moments);
  write_group(ctx, optimizer, "v", checkpoint.second_moments);
  optimizer.close();
  write_json(directory / kStateFile, {{"step", checkpoint.step}, {"config", checkpoint.config}, {"state", checkpoint.state}});
  Json files = Json::array();
  for (const char* name : kFiles) {
    const Path path = directory / name;
    files.push_back({{"name", name}, {"bytes", InputFile(path).size_bytes()}, {"sha256", sha256_of_file(path)}});
  }
  write_json(directory / kManifestFile, {{"format", kFormat}, {"version", kVersion}, {"step", checkpoint.step}, {"files", files}});
}

/// A whole file's name, size and digest as the manifest has them.
void verify_file(const Path& directory, const std::string& manifest, const Json& entry, const char* name) {
  const Path path = directory / name;
  const std::string given = required<std::string>(manifest, entry, "name");
  BRAID_CHECK(given == name, manifest, ": expected the file ", name, ", got '", given, "'");
  const int64_t bytes = required<int64_t>(manifest, entry, "bytes"), actual = InputFile(path).size_bytes();
  BRAID_CHECK(actual == bytes, path.string(), ": damaged: it has ", actual, " bytes, its manifest says ", bytes);
  BRAID_CHECK(sha256_of_file(path) == required<std::string>(manifest, entry, "sha256"), path.string(),
              ": damaged: its SHA-256 is not the manifest's");
}

/// Where a group lies: file and group in it.
std::pair<const char*, std::string> place_of(CheckpointReader::Group group) {
  switch (group) {
    case CheckpointReader::Group::parameters:
      return {kModelFile, "parameters"};
    case CheckpointReader::Group::first_moments:
      return {kOptimizerFile, "m"};
    case CheckpointReader::Group::second_moments:
      break;
  }
  return {kOptimizerFile, "v"};
}

}  // namespace

Path write_checkpoint(Context& ctx, const Path& run, const Checkpoint& checkpoint) {
  Path target = checkpoints_of(run) / step_name(checkpoint.step);
  make_directories(checkpoints_of(run));
  // A directory of this name is one that was found damaged and gone back on.
  if (std::filesystem::exists(target)) remove_path(target);
  AtomicDirectory directory(target);
  write_files(ctx, directory.temporary(), checkpoint);
  directory.commit();
  return target;
}

CheckpointReader::CheckpointReader(const Path& directory) : directory_(directory) {
  const Path manifest_path = directory / kManifestFile;
  const std::string name = manifest_path.string();
  const Json manifest = read_json(manifest_path);
  BRAID_CHECK(manifest.is_object() && required<std::string>(name, manifest, "format") == kFormat, name, ": it is not the manifest of a checkpoint");
  const int64_t version = required<int64_t>(name, manifest, "version");
  BRAID_CHECK(version == kVersion, name, ": expected a checkpoint of version ", kVersion, ", got ", version);
  step_ = required<int64_t>(name, manifest, "step");
  const Json files = required<Json>(name, manifest, "files");
  BRAID_CHECK(files.is_array() && files.size() == kFiles.size(), name, ": expected ", kFiles.size(), " files, got ", files.size());
  for (size_t i = 0; i < kFiles.size(); ++i) verify_file(directory, name, files[i], kFiles[i]);
  const Path state_path = directory / kStateFile;
  const Json state = read_json(state_path);
  const int64_t state_step = required<int64_t>(state_path.string(), state, "step");
  BRAID_CHECK(state_step == step_, name, ": it is of step ", step_, ", ", kStateFile, " of step ", state_step);
  config_ = required<std::string>(state_path.string(), state, "config");
  state_ = required<std::string>(state_path.string(), state, "state");
}

std::vector<std::string> CheckpointReader::names(Group group) const {
  const auto [file, path] = place_of(group);
  return Hdf5File::open(directory_ / file).group(path).names();
}

Tensor CheckpointReader::read(Context& ctx, Group group, const std::string& name) const {
  const auto [file, path] = place_of(group);
  return Hdf5File::open(directory_ / file).read_tensor(ctx, path + "/" + name);
}

void CheckpointReader::read_into(Context& ctx, Group group, const std::string& name, const Tensor& into) const {
  const auto [file, path] = place_of(group);
  Hdf5File::open(directory_ / file).read_tensor_into(ctx, path + "/" + name, into);
}

std::vector<Path> list_checkpoints(const Path& run) {
  std::vector<std::pair<int64_t, Path>> found;
  if (!std::filesystem::is_directory(checkpoints_of(run))) return {};
  for (const Path& path : list_directory(checkpoints_of(run)))
    if (const int64_t step = step_of_name(path.filename().string()); step >= 0 && std::filesystem::is_directory(path)) found.emplace_back(step, path);
  std::sort(found.begin(), found.end());
  std::vector<Path> paths;
  for (auto& [step, path] : found) paths.push_back(std::move(path));
  return paths;
}

std::optional<CheckpointReader> newest_whole_checkpoint(const Path& run, std::vector<std::string>& notes) {
  std::vector<Path> paths = list_checkpoints(run);
  for (; !paths.empty(); paths.pop_back()) {
    try {
      CheckpointReader reader(paths.back());
      if (step_name(reader.step()) == paths.back().filename()) return reader;
      notes.push_back("passed over " + paths.back().string() + ": it holds step " + std::to_string(reader.step()));
    } catch (const Error& error) {
      notes.push_back("passed over a damaged checkpoint: " + std::string(error.what()));
    }
  }
  return std::nullopt;
}

void prune_checkpoints(const Path& run, int64_t step, int64_t keep) {
  std::vector<Path> paths = list_checkpoints(run);
  for (; !paths.empty() && step_of_name(paths.back().filename().string()) > step; paths.pop_back()) remove_path(paths.back());
  for (int64_t i = 0; keep > 0 && i + keep < static_cast<int64_t>(paths.size()); ++i) remove_path(paths[i]);
}

int64_t remove_unfinished_checkpoints(const Path& run) {
  if (!std::filesystem::is_directory(checkpoints_of(run))) return 0;
  int64_t count = 0;
  for (const Path& path : list_directory(checkpoints_of(run))) {
    if (!is_temporary_name(path.filename().string())) continue;
    remove_path(path);
    ++count;
  }
  return count;
}

}  // namespace braid
