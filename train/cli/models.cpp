// braid models: the presets with their sizes and costs.
#include <iostream>

#include "io/json.h"
#include "models/cost.h"
#include "models/presets.h"
#include "train/cli/commands.h"
#include "train/cli/options.h"
#include "train/cli/table.h"
#include "train/metrics.h"

namespace braid::cli {
namespace {

constexpr const char* kNote =
    "A ratio R-1 means one layer of full attention in every R layers: layers R-1, 2R-1, … (3-1 has 8 of 24). The published checkpoints are laid out\n"
    "like this, although the paper's text calls the ratio linear : full. Without a ratio there is none.\n"
    "FLOPs are of training (forward and backward) per token; state bytes are per sequence and do not grow, KV bytes are per token.\n";

Json to_json(const std::string& name, const ModelConfig& config, const ModelCost& cost, int64_t context) {
  return {{"name", name},
          {"family", to_string(config.family)},
          {"layers", config.num_hidden_layers},
          {"full_attention_layers", config.num_attention_layers()},
          {"hidden_size", config.hidden_size},
          {"vocab_size", config.vocab_size},
          {"context", context},
          {"parameters", cost.parameters},
          {"embedding_parameters", cost.embedding_parameters},
          {"matmul_flops_per_token", cost.matmul_flops_per_token},
          {"recurrence_flops_per_token", cost.recurrence_flops_per_token},
          {"attention_flops_per_token", cost.attention_flops_per_token},
          {"flops_per_token", cost.flops_per_token()},
          {"state_bytes_per_sequence", cost.state_bytes_per_sequence},
          {"kv_bytes_per_token", cost.kv_bytes_per_token},
          {"kv_window", cost.kv_window}};
}

}  // namespace

int run_models(const Arguments& arguments) {
  std::string name, json_path;
  int64_t context = 4096;
  Options options("models", "the presets with parameters, training FLOPs per token by part, state and KV bytes", "braid models 340M-gdn-3-1");
  options.text("name", "only this preset: SIZE-FAMILY[-RATIO]", name);
  options.positional("name");
  options.integer("context", "tokens of a sequence; attention's cost depends on it", context, 1);
  options.json(json_path);
  if (!options.parse(arguments)) return kDone;
  require_writable_file("--json", json_path);
  Table table(
      {"preset", "parameters", "layers", "full attention", "FLOPs/token", "products", "recurrence", "attention", "state/sequence", "KV/token"});
  Json list = Json::array();
  for (const std::string& one : name.empty() ? preset_names() : std::vector<std::string>{name}) {
    const ModelConfig config = preset(one);
    const ModelCost cost = model_cost(config, context);
    table.add({one, short_number(static_cast<double>(cost.parameters)), std::to_string(config.num_hidden_layers),
               std::to_string(config.num_attention_layers()), short_number(cost.flops_per_token()), short_number(cost.matmul_flops_per_token),
               short_number(cost.recurrence_flops_per_token), short_number(cost.attention_flops_per_token),
               bytes(static_cast<double>(cost.state_bytes_per_sequence)), bytes(static_cast<double>(cost.kv_bytes_per_token))});
    list.push_back(to_json(one, config, cost, context));
  }
  table.print(std::cout);
  std::cout << '\n' << kNote << "Sequences of " << context << " tokens.\n";
  if (!json_path.empty()) write_json(json_path, {{"context", context}, {"models", list}});
  return kDone;
}

}  // namespace braid::cli
