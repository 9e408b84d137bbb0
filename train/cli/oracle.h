// Operators run on the tensors of a check file.
#pragma once
#include <map>
#include <string>

#include "core/context.h"
#include "io/safetensors.h"
#include "ops/recurrence/form.h"

namespace braid::cli {

/// A check file, read whole: what examples/check_file.md describes. `tensors` has the file's own dtypes.
struct CheckFile {
  std::string name;  // as errors call it
  std::string op;
  std::map<std::string, Tensor> tensors;
  std::map<std::string, std::string> attributes;  // the metadata
  std::vector<int64_t> cu_seqlens;

  Tensor find(const std::string& tensor) const {
    const auto found = tensors.find(tensor);
    return found == tensors.end() ? Tensor() : found->second;
  }
};

/// The format in a few lines, for --help.
std::string check_file_help();

/// Throws Error of one line: not a safetensors file, no or an unknown `op`, an attribute that the operator does not have or whose
/// value is none of its values, an input that is missing, sequences that do not fit, a tensor of no floating type.
CheckFile read_check_file(const std::string& path);

/// How to run it.
struct RunOptions {
  DType dtype = DType::f64;  // of the inputs; gates, weights and states have its accumulator type
  Form form = Form::token;   // of recurrences
};

/// Outputs and gradients by the names of check files: "o", "final_state", "d_q", …; the gradients only when the file gives an output
/// gradient to start from. In the dtype the operator has them.
std::map<std::string, Tensor> run_operator(Context& ctx, const CheckFile& file, const RunOptions& options);

/// The file with every input and output gradient rounded to what `dtype` can hold: the inputs a run in that dtype really sees.
CheckFile rounded(Context& ctx, const CheckFile& file, DType dtype);

}  // namespace braid::cli
