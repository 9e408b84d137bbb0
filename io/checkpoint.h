// Checkpoints: RUN/checkpoints/step-00001000/ with
//   model.h5       float32 (or float64) master parameters: one data set per parameter under /parameters
//   optimizer.h5   moments of the same names under /m and /v; none in a checkpoint of values only (braid convert --as run)
//   state.json     step, counters, random state, position in the data; and the model's configuration
//   manifest.json  format version, and size and SHA-256 of each of the files above
// A checkpoint is written under a temporary name beside its place, every file and directory is synced, then it is renamed: a crash at
// any instant leaves the former checkpoints whole and at most a leftover that the next run removes.
#pragma once
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/context.h"
#include "io/safetensors.h"

namespace braid {

/// What is saved. Tensors are those of all ranks together: a checkpoint does not know how many there were.
struct Checkpoint {
  int64_t step = 0;
  std::string config;  // the model's config.json
  std::string state;   // a JSON object: whatever training needs besides tensors
  std::vector<NamedTensor> parameters, first_moments, second_moments;
};

/// Writes the checkpoint of `step` below `run` and returns its directory. One of the same step is replaced. Throws Error that names the
/// file when something cannot be written; the former checkpoints are as they were.
std::filesystem::path write_checkpoint(Context& ctx, const std::filesystem::path& run, const Checkpoint& checkpoint);

/// A checkpoint on the disk, whose manifest, sizes and checksums were found right. Throws Error that names the damaged file.
class CheckpointReader {
 public:
  enum class Group : uint8_t { parameters, first_moments, second_moments };
  explicit CheckpointReader(const std::filesystem::path& directory);

  const std::filesystem::path& directory() const { return directory_; }
  int64_t step() const { return step_; }
  const std::string& config() const { return config_; }
  const std::string& state() const { return state_; }
  /// Whether there are no moments: training starts from the values with a new optimizer, at the beginning of the data.
  bool holds_values_only() const { return names(Group::first_moments).empty(); }

  /// Names in a group, sorted.
  std::vector<std::string> names(Group group) const;
  /// The tensor, on the context's device, in the dtype it was saved in.
  Tensor read(Context& ctx, Group group, const std::string& name) const;
  /// Fills `into`. Throws Error when there is none of that name, or of another shape or dtype.
  void read_into(Context& ctx, Group group, const std::string& name, const Tensor& into) const;

 private:
  std::filesystem::path directory_;
  int64_t step_ = 0;
  std::string config_, state_;
};

/// Directories of complete-looking checkpoints below `run`, by step, newest last. Nothing is verified.
std::vector<std::filesystem::path> list_checkpoints(const std::filesystem::path& run);

/// The newest checkpoint that is whole; none when there is none. Each damaged one passed over adds a line to `notes`.
std::optional<CheckpointReader> newest_whole_checkpoint(const std::filesystem::path& run, std::vector<std::string>& notes);

/// Removes checkpoints of steps after `step` (damaged ones that were gone back on) and the oldest of the others so that `keep` of them
/// are left (0: all are).
void prune_checkpoints(const std::filesystem::path& run, int64_t step, int64_t keep);
/// Removes what crashed writes left behind; says how many.
int64_t remove_unfinished_checkpoints(const std::filesystem::path& run);

}  // namespace braid
