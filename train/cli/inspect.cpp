// braid inspect: what is in a checkpoint, data set, safetensors file or model directory.
#include <cmath>
#include <fstream>
#include <iostream>

#include "io/checkpoint.h"
#include "io/json.h"
#include "io/model_directory.h"
#include "io/safetensors.h"
#include "io/token_dataset.h"
#include "models/config.h"
#include "models/cost.h"
#include "train/cli/commands.h"
#include "train/cli/model_source.h"
#include "train/cli/options.h"
#include "train/cli/table.h"

namespace braid::cli {
namespace {

template <class T>
std::string text_of(const T& value) {
  std::ostringstream text;
  text.imbue(std::locale::classic());
  text << value;
  return text.str();
}

Json shape_json(const Shape& shape) { return std::vector<int64_t>(shape.begin(), shape.end()); }

bool is_hdf5(const std::string& path) {
  char head[8] = {};
  std::ifstream(path, std::ios::binary).read(head, sizeof head);
  return std::string_view(head, sizeof head) == std::string_view("\x89HDF\r\n\x1a\n", 8);
}

Json inspect_safetensors(const std::string& path) {
  const Safetensors file{Path(path)};
  Json tensors = Json::array();
  Table table({"tensor", "dtype", "shape", "bytes"});
  for (const Safetensors::Entry& entry : file.entries()) {
    table.add({entry.name, entry.dtype_name, text_of(entry.shape), bytes(static_cast<double>(entry.end_bytes - entry.begin_bytes))});
    tensors.push_back({{"name", entry.name}, {"dtype", entry.dtype_name}, {"shape", shape_json(entry.shape)}});
  }
  std::cout << path << ": safetensors, " << file.entries().size() << " tensors\n";
  for (const auto& [key, value] : file.metadata()) std::cout << "  " << key << " = " << value << '\n';
  table.print(std::cout);
  return {{"kind", "safetensors"}, {"metadata", file.metadata()}, {"tensors", tensors}};
}

Json inspect_dataset(const std::string& path, bool verify) {
  const TokenDataset data{Path(path)};
  if (verify) data.verify();
  std::cout << path << ": token data set" << (verify ? ", checksum right" : "") << "\n  tokens      " << data.num_tokens() << "\n  documents   "
            << data.num_documents() << "\n  vocabulary  " << data.vocab_size() << "\n  tokenizer   " << data.tokenizer() << "\n  sha256      "
            << data.sha256() << '\n';
  return {{"kind", "token data set"},        {"tokens", data.num_tokens()},   {"documents", data.num_documents()},
          {"vocab_size", data.vocab_size()}, {"tokenizer", data.tokenizer()}, {"sha256", data.sha256()}};
}

Json describe_config(const ModelConfig& config) {
  const ModelCost cost = model_cost(config);
  std::cout << "  model       " << to_string(config.family) << ", " << config.num_hidden_layers << " layers of width " << config.hidden_size << ", "
            << config.num_attention_layers() << " of full attention, vocabulary " << config.vocab_size << "\n  parameters  " << cost.parameters
            << '\n';
  return {{"config", to_json(config)}, {"parameters", cost.parameters}};
}

Json inspect_checkpoint(const CheckpointReader& checkpoint) {
  Context ctx(1);
  const std::string path = checkpoint.directory().string();
  std::cout << path << ": checkpoint of step " << checkpoint.step() << ", whole\n";
  Json result = describe_config(parse_config(std::string_view(checkpoint.config())));
  Table table({"parameter", "dtype", "shape", "rms"});
  Json tensors = Json::array();
  for (const std::string& name : checkpoint.names(CheckpointReader::Group::parameters)) {
    const Tensor tensor = checkpoint.read(ctx, CheckpointReader::Group::parameters, name);
    double sum = 0;
    for (const double value : to_vector<double>(ctx, tensor)) sum += value * value;
    const double rms = std::sqrt(sum / static_cast<double>(std::max<int64_t>(1, tensor.numel())));
    table.add({name, text_of(tensor.dtype()), text_of(tensor.shape()), number(rms, 6)});
    tensors.push_back({{"name", name}, {"dtype", to_string(tensor.dtype())}, {"shape", shape_json(tensor.shape())}, {"rms", rms}});
  }
  table.print(std::cout);
  std::cout << "  state       " << checkpoint.state() << '\n';
  result.update({{"kind", "checkpoint"}, {"step", checkpoint.step()}, {"tensors", tensors}, {"state", parse_json(path, checkpoint.state())}});
  return result;
}

Json inspect_model_directory(const std::string& path) {
  std::cout << path << ": model directory\n";
  Json result = describe_config(read_model_config(Path(path) / "config.json"));
  const std::vector<std::string> ignored = ignored_keys(read_json(Path(path) / "config.json"));
  if (!ignored.empty()) std::cout << "  ignored     ";
  for (const std::string& key : ignored) std::cout << key << (key == ignored.back() ? "\n" : ", ");
  result["ignored_keys"] = ignored;
  Json files = Json::array();
  for (const Path& file : list_directory(path))
    if (file.extension() == ".safetensors") files.push_back(inspect_safetensors(file.string()));
  result.update({{"kind", "model directory"}, {"files", files}});
  return result;
}

Json inspect_any(const std::string& path, bool verify) {
  switch (source_kind(path)) {
    case SourceKind::checkpoint:
    case SourceKind::run:
      return inspect_checkpoint(named_checkpoint("--file", path));
    case SourceKind::model_directory:
      return inspect_model_directory(path);
    case SourceKind::other:
      break;
  }
  std::error_code error;
  BRAID_CHECK(
      !std::filesystem::is_directory(path, error),
      "--file must be a file, a model directory (with config.json), a run (with checkpoints) or a whole checkpoint (with manifest.json), got ", path);
  require_file("--file", path);
  return is_hdf5(path) || Path(path).extension() == ".h5" ? inspect_dataset(path, verify) : inspect_safetensors(path);
}

}  // namespace

int run_inspect(const Arguments& arguments) {
  std::string path, json_path;
  bool verify = false;
  Options options("inspect", "what is in a checkpoint, run, token data set, safetensors file or model directory",
                  "braid inspect RUN/checkpoints/step-00001000");
  options.text("file", "what to look into", path);
  options.positional("file");
  options.require("file");
  options.reads({"file"});
  options.flag("verify", "data sets: read all tokens and compare the checksum", verify);
  options.json(json_path);
  if (!options.parse(arguments)) return kDone;
  require_path("--file", path);
  require_writable_file("--json", json_path);
  const Json result = inspect_any(path, verify);
  if (!json_path.empty()) write_json(json_path, result);
  return kDone;
}

}  // namespace braid::cli
