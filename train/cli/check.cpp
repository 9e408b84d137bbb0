// braid check: somebody's operator outputs and gradients against the token-by-token form in float64.
#include <algorithm>
#include <cmath>
#include <iostream>

#include "io/json.h"
#include "train/cli/commands.h"
#include "train/cli/compare.h"
#include "train/cli/options.h"
#include "train/cli/oracle.h"
#include "train/cli/table.h"

namespace braid::cli {
namespace {

/// A single block may be this much worse than the tolerance of the whole tensor: one wrong tile must not hide in the average.
constexpr double kBlockAllowance = 4;

double tolerance_of(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return 1e-9;
    case DType::f32:
      return 1e-5;
    default:
      return 5e-3;
  }
}

/// One line of the report.
struct Row {
  std::string file, op, tensor, source;
  DType dtype;
  Comparison comparison;
  double tolerance;
  bool pass() const { return comparison.error <= tolerance && comparison.worst_block_error <= kBlockAllowance * tolerance; }
};

struct CheckOptions {
  std::vector<std::string> files;
  DeviceOptions device;
  std::string dtype, json;
  double tolerance = 0;
};

/// A file's precision is the coarsest of what it is about: a float32 gate beside bfloat16 queries makes no float32 file.
double file_tolerance(const CheckFile& file, const Tensor& checked) {
  double tolerance = tolerance_of(checked.dtype());
  for (const char* name : {"x", "q", "k", "v"})
    if (const Tensor input = file.find(name)) tolerance = std::max(tolerance, tolerance_of(input.dtype()));
  return tolerance;
}

Row compared(Context& host, const CheckFile& file, const std::string& name, const Tensor& given, const Tensor& reference) {
  BRAID_CHECK(given.shape() == reference.shape(), file.name, ": ", name, " must be ", reference.shape(), ", got ", given.shape());
  const bool channels = file.op == "linear_recurrence" || file.op == "short_conv";
  Row row{.file = file.name, .op = file.op, .tensor = name, .source = "file", .dtype = given.dtype(), .comparison = {}, .tolerance = 0};
  row.comparison = compare(host, given, reference, kind_of(name, reference.shape()), channels ? 64 : 1);
  return row;
}

/// The file's outputs and input gradients, each against the oracle.
void check_given(Context& ctx, const CheckFile& file, const CheckOptions& options, std::vector<Row>& rows) {
  const auto reference = run_operator(ctx, file, {DType::f64, Form::token});
  const size_t before = rows.size();
  for (const auto& [name, given] : file.tensors) {
    // The gradients of the outputs are given, not checked; so are the inputs.
    const bool is_result = name == "o" || name == "final_state" || (name.starts_with("d_") && name != "d_o" && name != "d_final_state");
    if (!is_result) continue;
    const auto found = reference.find(name);
    BRAID_CHECK(found != reference.end(), file.name, ": ", name,
                " cannot be checked without the output gradient d_o or d_final_state, which the file lacks");
    rows.push_back(compared(ctx, file, name, given, found->second));
    rows.back().tolerance = options.tolerance > 0 ? options.tolerance : file_tolerance(file, given);
  }
  BRAID_CHECK(rows.size() > before, file.name, ": expected an output or an input gradient to check (o, final_state, d_…), got none");
}

/// This engine's own operator, in the form training uses, on the file's inputs.
void check_engine(Context& ctx, const CheckFile& file, DType dtype, const CheckOptions& options, std::vector<Row>& rows) {
  Context host(static_cast<int>(options.device.threads));
  const CheckFile inputs = rounded(host, file, dtype);
  const auto reference = run_operator(host, inputs, {DType::f64, Form::token});
  for (const auto& [name, tensor] : run_operator(ctx, inputs, {dtype, Form::automatic})) {
    const auto found = reference.find(name);
    if (found == reference.end() || name == "lse") continue;
    const Tensor here = Tensor::empty(host, tensor.shape(), tensor.dtype());
    copy_into(ctx, here, tensor);
    ctx.synchronize();
    rows.push_back(compared(host, file, name, here, found->second));
    rows.back().source = "braid";
    rows.back().tolerance = options.tolerance > 0 ? options.tolerance : tolerance_of(dtype);
  }
}

/// The same on a GPU. Where nobody asked for it, a shape that no kernel is built for is said and leaves the file's own verdict alone.
void check_kernel(Context& ctx, const CheckFile& file, DType dtype, const CheckOptions& options, std::vector<Row>& rows) {
  try {
    check_engine(ctx, file, dtype, options, rows);
  } catch (const Error& error) {
    if (!options.device.device.empty()) throw;
    std::cout << file.name << ": Braid's own kernel was not run: " << error.what() << '\n';
  }
}

Json to_json(const Row& row) {
  return {{"file", row.file},
          {"op", row.op},
          {"tensor", row.tensor},
          {"source", row.source},
          {"dtype", to_string(row.dtype)},
          {"error", row.comparison.error},
          {"worst_block", row.comparison.worst_block},
          {"worst_block_error", row.comparison.worst_block_error},
          {"tolerance", row.tolerance},
          {"pass", row.pass()}};
}

int report(const std::vector<Row>& rows, const std::string& json_path) {
  Table table({"file", "operator", "tensor", "of", "dtype", "error", "worst block", "its error", "tolerance", "verdict"});
  Json list = Json::array();
  const auto failed = std::count_if(rows.begin(), rows.end(), [](const Row& row) { return !row.pass(); });
  for (const Row& row : rows) {
    const Comparison& c = row.comparison;
    table.add({row.file, row.op, row.tensor, row.source, std::string(to_string(row.dtype)), number(c.error), c.worst_block,
               number(c.worst_block_error), number(row.tolerance), row.pass() ? "pass" : "FAIL"});
    list.push_back(to_json(row));
  }
  table.print(std::cout);
  std::cout << rows.size() - failed << " of " << rows.size() << " tensors pass\n";
  if (!json_path.empty()) write_json(json_path, {{"passed", failed == 0}, {"tensors", list}});
  return failed ? kCheckFailed : kDone;
}

}  // namespace

int run_check(const Arguments& arguments) {
  CheckOptions o;
  Options options("check", "compare operator outputs and gradients with the token-by-token form in float64",
                  "braid check my_kernel.safetensors --json verdict.json\n\n" + check_file_help());
  options.list("file", "check files: safetensors with inputs, outputs and gradients", o.files);
  options.positional("file");
  options.require("file");
  options.reads({"file"});
  options.choice("dtype", "also run Braid's own operator on the files' inputs, in this type, and check it", o.dtype, {"f64", "f32", "bf16"});
  options.number("tolerance", "bound on rms(error) / rms(reference), a block's error may be 4 times it; 0: by type, 1e-9 f64, 1e-5 f32, 5e-3 bf16",
                 o.tolerance);
  options.device(o.device);
  options.json(o.json);
  if (!options.parse(arguments)) return kDone;
  for (const std::string& file : o.files) require_file("--file", file);
  require_writable_file("--json", o.json);
  Context ctx = make_context(o.device, o.dtype == "f64" ? DType::f64 : DType::f32);
  Context host(static_cast<int>(o.device.threads));
  std::vector<Row> rows;
  for (const std::string& path : o.files) {
    const CheckFile file = read_check_file(path);
    check_given(host, file, o, rows);
    const DType own = (file.find("x") ? file.find("x") : file.find("q")).dtype();
    if (!o.dtype.empty()) check_engine(ctx, file, parse_compute_dtype("--dtype", o.dtype), o, rows);
    else if (!ctx.on_cpu()) check_kernel(ctx, file, own == DType::bf16 ? DType::bf16 : DType::f32, o, rows);
  }
  return report(rows, o.json);
}

}  // namespace braid::cli
