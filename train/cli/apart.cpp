#include "train/cli/apart.h"

#include <algorithm>
#include <array>
#include <filesystem>

#include "core/error.h"

namespace braid::cli {
namespace fs = std::filesystem;
namespace {

/// Where writing to `path` would end, whether something is there or not.
fs::path place_of(const std::string& path) {
  std::error_code error;
  const fs::path place = fs::weakly_canonical(fs::absolute(path, error), error);
  return error ? fs::path(path) : place;
}

bool are_one_file(const std::string& a, const std::string& b) {
  std::error_code error;
  return fs::equivalent(a, b, error) || place_of(a) == place_of(b);
}

/// Whether models, runs and checkpoints in `directory` know the file at `place` by its name.
bool is_file_of(const std::string& directory, const fs::path& place) {
  constexpr std::array kNames = {"config.json", "model.safetensors", "model.safetensors.index.json", "metrics.jsonl", "manifest.json"};
  constexpr std::array kCheckpointNames = {"model.h5", "optimizer.h5", "state.json"};
  const auto is_one_of = [&](const auto& names) { return std::find(names.begin(), names.end(), place.filename()) != names.end(); };
  std::error_code error;
  const fs::path home = place_of(directory), inside = place.lexically_relative(home);
  if (!inside.empty() && *inside.begin() == "checkpoints") return true;
  if (place.parent_path() != home) return false;
  if (is_one_of(kNames)) return true;
  if (place.extension() == ".safetensors") return fs::exists(home / "model.safetensors.index.json", error);  // a shard
  return is_one_of(kCheckpointNames) && fs::exists(home / "manifest.json", error);
}

void require_apart(const NamedPath& written, const NamedPath& taken) {
  std::error_code error;
  BRAID_CHECK(!are_one_file(written.path, taken.path), written.option, " must not be one of the inputs, got ", written.path, ", which ", taken.option,
              " names too");
  BRAID_CHECK(fs::is_regular_file(taken.path, error) || !is_file_of(taken.path, place_of(written.path)), written.option,
              " must not be a file of the model or run that ", taken.option, " names, got ", written.path);
}

}  // namespace

void require_apart(const std::vector<NamedPath>& written, const std::vector<NamedPath>& taken) {
  std::error_code error;
  for (size_t i = 0; i < written.size(); ++i) {
    if (fs::exists(written[i].path, error) && !fs::is_regular_file(written[i].path, error)) continue;
    for (size_t j = 0; j < i; ++j)
      BRAID_CHECK(!are_one_file(written[i].path, written[j].path), written[i].option, " must be another file than ", written[j].option, ", got ",
                  written[i].path);
    for (const NamedPath& named : taken) require_apart(written[i], named);
  }
}

}  // namespace braid::cli
