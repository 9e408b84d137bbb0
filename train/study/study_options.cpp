#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "io/json.h"
#include "models/presets.h"
#include "train/study/study.h"

namespace braid {
namespace {

int64_t ratio_of(const std::string& ratio, int64_t num_layers) {
  const size_t dash = ratio.find("-1");
  const bool digits = dash != std::string::npos && dash > 0 && dash + 2 == ratio.size() && ratio.find_first_not_of("0123456789") == dash;
  BRAID_CHECK(digits && dash < 6, "study: a ratio is 'pure', 'full' or R-1 (one full-attention layer in every R), got '", ratio, "'");
  const int64_t every = std::stoll(ratio.substr(0, dash));
  BRAID_CHECK(every >= 1 && every <= num_layers, "study: a ratio R-1 must have an R from 1 to num_layers = ", num_layers, ", got '", ratio, "'");
  return every;
}

Family family_named(const std::string& name) {
  const std::optional<Family> as_preset = preset_family(name);
  for (Family family : kFamilies)
    if ((name == to_string(family) || family == as_preset) && family != Family::transformer) return family;
  fail("study: families must be of hgrn, retnet, gla, hgrn2, deltanet and gdn (\"transformer\": true adds the Transformer), got '", name, "'");
}

/// The MLP width, a multiple of 8, that brings the model nearest to `parameters`.
int64_t matched_width(ModelConfig config, int64_t parameters) {
  int64_t best = 8, best_distance = INT64_MAX;
  for (int64_t width = 8; width <= 4096; width += 8) {
    config.intermediate_size = width;
    const int64_t distance = std::abs(model_cost(config).parameters - parameters);
    if (distance >= best_distance) break;  // parameters rise with the width
    best = width;
    best_distance = distance;
  }
  return best;
}

ModelConfig base_model(const StudyOptions& options) {
  ModelConfig config;
  config.hidden_size = options.hidden_size;
  config.num_hidden_layers = options.num_layers;
  config.vocab_size = options.vocab_size;
  config.max_position_embeddings = std::max(options.text_context, options.recall.length);
  config.intermediate_size = options.mlp_width;
  return config;
}

AttentionConfig attention_layers(const StudyOptions& options, int64_t every) {
  AttentionConfig attention;
  attention.layers = every_rth_layer(options.num_layers, every);
  attention.num_heads = attention.num_kv_heads = options.num_heads;
  return attention;
}

void set_mixer(const StudyOptions& options, ModelConfig& config) {
  const double key_ratio = static_cast<double>(options.key_dim * options.num_heads) / static_cast<double>(options.hidden_size);
  config.num_heads = config.num_kv_heads = config.num_v_heads = options.num_heads;
  config.use_short_conv = true;
  config.expand_k = key_ratio;
  config.expand_v = 1;
  switch (config.family) {
    case Family::gated_deltanet:
      config.head_dim = options.key_dim;
      config.expand_v = static_cast<double>(options.hidden_size) / static_cast<double>(options.num_heads * options.key_dim);
      config.use_gate = true;
      break;
    case Family::hgrn:
      config.expand_ratio = 1;
      break;
    case Family::hgrn2:
      config.expand_ratio = static_cast<double>(options.key_dim);
      config.num_heads = options.hidden_size / options.key_dim;
      break;
    default:
      break;
  }
}

/// Reads json[key] into `to` when it is there; a wrong type is an Error.
template <class T>
void read(const Json& json, const char* key, T& to) {
  to = value_or<T>("study", json, key, to);
}

const std::vector<std::string> kKeys = {"preset",
                                        "name",
                                        "families",
                                        "ratios",
                                        "transformer",
                                        "seeds",
                                        "num_layers",
                                        "hidden_size",
                                        "num_heads",
                                        "key_dim",
                                        "mlp_width",
                                        "vocab_size",
                                        "recall",
                                        "recall_steps",
                                        "recall_examples",
                                        "recall_learning_rate",
                                        "recall_test_examples",
                                        "text_steps",
                                        "text_batch_tokens",
                                        "text_context",
                                        "text_learning_rate",
                                        "text_val_tokens",
                                        "jobs"};

std::string known_list(const std::vector<std::string>& known) {
  std::string list;
  for (const std::string& key : known) list += (list.empty() ? "" : ", ") + key;
  return list;
}

void require_known_keys(const Json& json, const std::vector<std::string>& known) {
  BRAID_CHECK(json.is_object(), "study: expected a JSON object, got ", json.type_name());
  for (const auto& [key, value] : json.items())
    BRAID_CHECK(std::find(known.begin(), known.end(), key) != known.end(), "study: unknown key '", key, "', expected one of ", known_list(known));
}

bool is_text_file(const std::filesystem::path& path) {
  static const std::vector<std::string> kExtensions = {".h", ".cpp", ".cu", ".md", ".sh", ".txt"};
  return std::find(kExtensions.begin(), kExtensions.end(), path.extension().string()) != kExtensions.end();
}

/// Folders that hold what was built or made, not written: a build folder holds CMake's cache.
bool is_made(const std::filesystem::path& folder) {
  std::error_code absent;
  return folder.filename().string()[0] == '.' || std::filesystem::exists(folder / "CMakeCache.txt", absent) || folder.filename() == "quickstart";
}

void add_files(const std::filesystem::path& path, std::vector<std::filesystem::path>& files) {
  namespace fs = std::filesystem;
  std::error_code error;
  if (!fs::is_directory(path, error)) {
    BRAID_CHECK(fs::exists(path, error), "--text: no such file or directory: ", path.string());
    files.push_back(path);
    return;
  }
  fs::path last = path;
  std::error_code absent;  // an entry that goes away meanwhile, or a link to nowhere, is no text
  for (fs::recursive_directory_iterator entry(path, error), end; !error && entry != end; entry.increment(error)) {
    last = entry->path();
    if (entry->is_directory(absent) && is_made(last)) entry.disable_recursion_pending();
    if (entry->is_regular_file(absent) && is_text_file(last)) files.push_back(last);
  }
  BRAID_CHECK(!error, "--text: cannot read all of ", path.string(), ", at ", last.string(), ": ", error.message());
}

/// Every point of the grid is trained once: a second one like it would pass for more evidence.
template <class T>
void require_distinct(const char* key, const std::vector<T>& values) {
  for (size_t i = 0; i < values.size(); ++i)
    BRAID_CHECK(std::find(values.begin(), values.begin() + i, values[i]) == values.begin() + i, "study: ", key, " must differ, got one twice");
}

void check_grid(const StudyOptions& options) {
  BRAID_CHECK(!options.seeds.empty(), "study: seeds must name at least one seed");
  BRAID_CHECK(!options.families.empty() || options.transformer, "study: families must name at least one family");
  BRAID_CHECK(!options.ratios.empty() || options.families.empty(), "study: ratios must name at least one ratio");
  for (int64_t seed : options.seeds) BRAID_CHECK(seed >= 0, "study: seeds must be at least 0, got ", seed);
  require_distinct("families", options.families);
  require_distinct("ratios", options.ratios);
  require_distinct("seeds", options.seeds);
}

void check_numbers(const StudyOptions& options) {
  for (const auto& [name, value] : {std::pair{"num_layers", options.num_layers},
                                    {"hidden_size", options.hidden_size},
                                    {"num_heads", options.num_heads},
                                    {"key_dim", options.key_dim},
                                    {"mlp_width", options.mlp_width},
                                    {"recall_steps", options.recall_steps},
                                    {"text_steps", options.text_steps},
                                    {"recall_examples", options.recall_examples},
                                    {"recall_test_examples", options.recall_test_examples},
                                    {"text_batch_tokens", options.text_batch_tokens},
                                    {"text_context", options.text_context},
                                    {"jobs", options.jobs}})
    BRAID_CHECK(value >= 1, "study: ", name, " must be at least 1, got ", value);
  BRAID_CHECK(options.text_val_tokens >= 0, "study: text_val_tokens must be at least 0 (all), got ", options.text_val_tokens);
  for (const auto& [name, rate] :
       {std::pair{"recall_learning_rate", options.recall_learning_rate}, {"text_learning_rate", options.text_learning_rate}})
    BRAID_CHECK(rate > 0, "study: ", name, " must be positive, got ", rate);
  BRAID_CHECK(options.hidden_size % options.num_heads == 0, "study: num_heads must divide hidden_size = ", options.hidden_size, ", got ",
              options.num_heads);
  BRAID_CHECK(options.text_batch_tokens % options.text_context == 0,
              "study: text_context must divide text_batch_tokens = ", options.text_batch_tokens, ", got ", options.text_context);
}

}  // namespace

StudyOptions study_preset(std::string_view name) {
  StudyOptions options;
  options.name = name;
  if (name == "quickstart") return options;
  BRAID_CHECK(name == "smoke", "study: unknown preset '", name, "'; expected quickstart or smoke");
  options.seeds = {1};
  options.ratios = {"pure", "3-1"};
  options.num_layers = 3;
  options.hidden_size = 16;
  options.mlp_width = 16;
  options.recall_steps = options.text_steps = 4;
  options.recall_examples = 4;
  options.recall_test_examples = 8;
  options.text_batch_tokens = 128;
  options.text_context = 64;
  options.text_val_tokens = 512;
  return options;
}

StudyOptions parse_study(const Json& json) {
  require_known_keys(json, kKeys);
  std::string preset = "quickstart";
  read(json, "preset", preset);
  StudyOptions options = study_preset(preset);
  std::vector<std::string> families;
  read(json, "families", families);
  if (json.contains("families")) options.families.clear();
  for (const std::string& name : families) options.families.push_back(family_named(name));
  read(json, "name", options.name);
  read(json, "ratios", options.ratios);
  read(json, "transformer", options.transformer);
  read(json, "seeds", options.seeds);
  for (const auto& [key, member] : {std::pair{"num_layers", &options.num_layers},
                                    {"hidden_size", &options.hidden_size},
                                    {"num_heads", &options.num_heads},
                                    {"key_dim", &options.key_dim},
                                    {"mlp_width", &options.mlp_width},
                                    {"vocab_size", &options.vocab_size},
                                    {"recall_steps", &options.recall_steps},
                                    {"recall_examples", &options.recall_examples},
                                    {"recall_test_examples", &options.recall_test_examples},
                                    {"text_steps", &options.text_steps},
                                    {"text_batch_tokens", &options.text_batch_tokens},
                                    {"text_context", &options.text_context},
                                    {"text_val_tokens", &options.text_val_tokens},
                                    {"jobs", &options.jobs}})
    read(json, key, *member);
  read(json, "recall_learning_rate", options.recall_learning_rate);
  read(json, "text_learning_rate", options.text_learning_rate);
  if (json.contains("recall")) {
    const Json& recall = json.at("recall");
    BRAID_CHECK(recall.is_object(), "study: recall must be an object, got ", recall.type_name());
    require_known_keys(recall, {"num_pairs", "num_keys", "num_values", "num_queries", "gap", "length"});
    for (const auto& [key, member] : {std::pair{"num_pairs", &options.recall.num_pairs},
                                      {"num_keys", &options.recall.num_keys},
                                      {"num_values", &options.recall.num_values},
                                      {"num_queries", &options.recall.num_queries},
                                      {"gap", &options.recall.gap},
                                      {"length", &options.recall.length}})
      read(recall, key, *member);
  }
  check_study(options);
  return options;
}

void check_study(const StudyOptions& options) {
  check_grid(options);
  check_numbers(options);
  const std::unique_ptr<RecallTask> task = make_associative_recall(options.recall, static_cast<uint64_t>(options.seeds[0]));
  for (const Split split : {Split::train, Split::test}) task->example(split, 0);  // throws where there are too few different ones
  const int64_t vocab = std::max<int64_t>(256, task->vocab_size());
  BRAID_CHECK(options.vocab_size >= vocab, "study: vocab_size must be at least ", vocab, " (bytes, and the recall task's tokens), got ",
              options.vocab_size);
  for (Family family : options.families)
    for (const std::string& ratio : options.ratios) parse_config(to_json(study_model(options, family, ratio)));
}

ModelConfig study_model(const StudyOptions& options, Family family, const std::string& ratio) {
  ModelConfig baseline = base_model(options);
  baseline.family = Family::transformer;
  baseline.attn = {attention_layers(options, 1)};
  if (family == Family::transformer) return baseline;
  ModelConfig config = base_model(options);
  config.family = family;
  set_mixer(options, config);
  if (ratio != "pure") config.attn = {attention_layers(options, ratio == "full" ? 1 : ratio_of(ratio, options.num_layers))};
  config.intermediate_size = matched_width(config, model_cost(baseline).parameters);
  return config;
}

StudyText read_study_text(const std::vector<std::string>& paths) {
  std::vector<std::filesystem::path> files;
  for (const std::string& path : paths) add_files(path, files);
  std::sort(files.begin(), files.end());
  std::vector<std::vector<int64_t>> train, validation;
  int64_t num_bytes = 0;
  for (size_t i = 0; i < files.size(); ++i) {
    std::ifstream file(files[i], std::ios::binary);
    BRAID_CHECK(file.good(), "--text: cannot read ", files[i].string());
    std::vector<int64_t> bytes;
    for (std::istreambuf_iterator<char> at(file), end; at != end; ++at) bytes.push_back(static_cast<unsigned char>(*at));
    num_bytes += static_cast<int64_t>(bytes.size());
    (i % 10 == 9 ? validation : train).push_back(std::move(bytes));
  }
  BRAID_CHECK(files.size() >= 10 && num_bytes >= 10000, "--text: expected at least 10 text files of 10000 bytes in all, found ", files.size(), " of ",
              num_bytes);
  return {make_token_source(train), make_token_source(validation)};
}

}  // namespace braid
