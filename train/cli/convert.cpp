// braid convert: checkpoints to model directories and back.
#include <iostream>

#include "io/checkpoint.h"
#include "io/json.h"
#include "io/model_directory.h"
#include "train/cli/commands.h"
#include "train/cli/model_source.h"
#include "train/cli/options.h"

namespace braid::cli {
namespace {

/// A run whose only checkpoint, of step 0, holds the model's values and no moments: training that resumes from it starts with zeroed ones.
void write_run(Context& ctx, const HybridLm& model, const std::string& to) {
  BRAID_CHECK(list_checkpoints(to).empty(), "--to must be a run without checkpoints, got ", to);
  Checkpoint checkpoint;
  checkpoint.config = to_json(model.config()).dump();
  checkpoint.state = "{}";
  for (const Parameter* parameter : model.parameters()) checkpoint.parameters.push_back({parameter->name, parameter->value});
  make_directories(to);
  write_checkpoint(ctx, to, checkpoint);
}

}  // namespace

int run_convert(const Arguments& arguments) {
  std::string from, to, form = "directory", dtype = "f32", json;
  Options options("convert", "turn a run, a checkpoint or a model directory into a model directory (config.json and safetensors) or a run",
                  "braid convert --from RUN --to my-model\n  braid convert --from my-model --to RUN2 --as run");
  options.text("from", "run (its newest whole checkpoint), checkpoint or model directory", from);
  options.require("from");
  options.text("to", "directory to write", to);
  options.require("to");
  options.choice("as", "what to write; a run holds the values at step 0: 'braid train --resume' starts from them with a new optimizer", form,
                 {"directory", "run"});
  options.choice("dtype", "of the values in a model directory (a run's are f32)", dtype, {"f32", "bf16"});
  options.reads({"from", "to"});
  options.json(json);
  if (!options.parse(arguments)) return kDone;
  require_path("--from", from);
  require_writable_directory("--to", to);
  if (form == "run") require_place_for_run("--to", to);
  else require_place_for_model("--to", to);
  BRAID_CHECK(form == "directory" || dtype == "f32", "--dtype must be f32 with --as run, whose values are float32, got ", dtype);
  require_writable_file("--json", json);
  Context ctx(0);
  const auto model = load_named_model(ctx, "--from", from, DType::f32);
  if (form == "run") write_run(ctx, *model, to);
  else save_model_directory(ctx, to, *model, parse_compute_dtype("--dtype", dtype));
  if (!json.empty()) write_json(json, {{"from", from}, {"to", to}, {"parameters", model->num_parameters()}});
  std::cout << to << ": " << model->num_parameters() << " parameters from " << from << '\n';
  return kDone;
}

}  // namespace braid::cli
