#include "train/cli/oracle.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <optional>

#include "ops/attention.h"
#include "ops/recurrence/gated_delta_rule.h"
#include "ops/recurrence/gated_linear_attention.h"
#include "ops/recurrence/linear_recurrence.h"
#include "ops/short_conv.h"

namespace braid::cli {
namespace {

using Results = std::map<std::string, Tensor>;
using Names = std::vector<std::string>;

/// What a check file may hold for one operator.
struct Layout {
  Names required, optional, outputs, attributes;
};

const std::map<std::string, Layout>& layouts() {
  static const std::map<std::string, Layout> all = {
      {"linear_recurrence", {{"x", "log_decay"}, {"initial_state"}, {"o", "final_state"}, {}}},
      {"gated_linear_attention", {{"q", "k", "v"}, {"log_decay", "initial_state"}, {"o", "final_state"}, {"scale"}}},
      {"gated_delta_rule", {{"q", "k", "v", "beta"}, {"log_decay", "initial_state"}, {"o", "final_state"}, {"scale", "qk_l2norm"}}},
      {"attention", {{"q", "k", "v"}, {}, {"o"}, {"scale", "window"}}},
      {"short_conv", {{"x", "weight"}, {"initial_state"}, {"o", "final_state"}, {"activation"}}},
  };
  return all;
}

std::string listed(const Names& names) {
  std::string list;
  for (const std::string& name : names) list += (list.empty() ? "" : ", ") + name;
  return list;
}

bool contains(const Names& names, const std::string& name) { return std::find(names.begin(), names.end(), name) != names.end(); }

/// Gates, weights and states are kept in the accumulator type of the computation.
bool is_accumulated(std::string_view name) {
  return name == "weight" || name == "log_decay" || name == "beta" || name == "initial_state" || name == "final_state";
}

DType dtype_in_run(std::string_view name, DType dtype) { return is_accumulated(name) ? accumulator(dtype) : dtype; }

/// The attribute `key`, read by `read` (false: not one of its values), or `otherwise` when the file does not give it.
template <class T, class Read>
T attribute(const CheckFile& file, const std::string& key, const char* expected, T otherwise, Read&& read) {
  const auto found = file.attributes.find(key);
  if (found == file.attributes.end()) return otherwise;
  T value = otherwise;
  BRAID_CHECK(read(found->second, value), file.name, ": attribute ", key, " must be ", expected, ", got \"", found->second, "\"");
  return value;
}

std::optional<double> scale_of(const CheckFile& file) {
  return attribute<std::optional<double>>(file, "scale", "a number", std::nullopt, [](const std::string& text, std::optional<double>& value) {
    double parsed = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), parsed);
    value = parsed;
    return error == std::errc{} && end == text.data() + text.size() && std::isfinite(parsed);
  });
}

int64_t window_of(const CheckFile& file) {
  return attribute<int64_t>(file, "window", "a whole number of at least 0 (0: none)", 0, [](const std::string& text, int64_t& value) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    return error == std::errc{} && end == text.data() + text.size() && value >= 0;
  });
}

bool qk_l2norm_of(const CheckFile& file) {
  return attribute<bool>(file, "qk_l2norm", "0 or 1", false, [](const std::string& text, bool& value) {
    value = text == "1" || text == "true" || text == "True";
    return value || text == "0" || text == "false" || text == "False";
  });
}

ConvActivation activation_of(const CheckFile& file) {
  return attribute<ConvActivation>(file, "activation", "none or silu", ConvActivation::none, [](const std::string& text, ConvActivation& value) {
    value = text == "silu" || text == "swish" ? ConvActivation::silu : ConvActivation::none;
    return value == ConvActivation::silu || text == "none";
  });
}

/// An absent initial state is zeros; made when somebody asks for its gradient.
Tensor zero_state(Context& ctx, const CheckFile& file, DType dtype, int64_t num_sequences) {
  const Tensor d_state = file.find("d_initial_state");
  BRAID_CHECK(d_state.rank() >= 1 && d_state.size(0) == num_sequences, file.name, ": d_initial_state must have ", num_sequences, " sequences, got ",
              d_state.shape());
  return Tensor::zeros(ctx, d_state.shape(), accumulator(dtype));
}

template <Differentiable Op>
Results run(Context& ctx, const CheckFile& file, const RunOptions& options, const typename Op::Attrs& attrs) {
  Context host(1);
  const auto placed = [&](const std::string& name) -> Tensor {
    Tensor tensor = file.find(name);
    if (!tensor) return tensor;
    const std::string_view base = name.starts_with("d_") ? std::string_view(name).substr(2) : std::string_view(name);
    return copied(ctx, converted(host, tensor, dtype_in_run(base, options.dtype)));
  };
  Tape tape;
  WithTape recording(ctx, &tape);
  typename Op::Inputs in;
  const auto inputs = tensors_of(in);
  for (size_t i = 0; i < inputs.size(); ++i) {
    const std::string name(Op::Inputs::names[i]);
    Tensor value = placed(name);
    if (!value && name == "initial_state" && file.find("d_initial_state"))
      value = zero_state(ctx, file, options.dtype, static_cast<int64_t>(file.cu_seqlens.size()) - 1);
    if (value) *inputs[i] = tape.leaf(value);
  }
  typename Op::Outputs out = apply<Op>(ctx, in, attrs);
  Results results;
  std::vector<Tensor> roots, seeds;
  const auto outputs = tensors_of(out);
  for (size_t i = 0; i < outputs.size(); ++i) {
    const std::string name(Op::Outputs::names[i]);
    if (outputs[i]->defined()) results[name] = outputs[i]->detached();
    const Tensor seed = outputs[i]->defined() ? placed("d_" + name) : Tensor();
    if (!seed) continue;
    BRAID_CHECK(seed.shape() == outputs[i]->shape(), file.name, ": d_", name, " must be ", outputs[i]->shape(), " like ", name, ", got ",
                seed.shape());
    roots.push_back(*outputs[i]);
    seeds.push_back(seed);
  }
  if (roots.empty()) return results;
  tape.backward(ctx, roots, seeds);
  for (size_t i = 0; i < inputs.size(); ++i)
    if (inputs[i]->defined()) results["d_" + std::string(Op::Inputs::names[i])] = tape.grad(*inputs[i]);
  return results;
}

std::vector<int64_t> read_cu_seqlens(const CheckFile& file, const Tensor& tensor) {
  BRAID_CHECK(tensor.rank() == 1 && tensor.numel() >= 1 && (tensor.dtype() == DType::i64 || tensor.dtype() == DType::i32), file.name,
              ": cu_seqlens must be i64 [S + 1], got ", tensor.dtype(), " ", tensor.shape());
  Context host(1);
  return to_vector<int64_t>(host, tensor);
}

/// Whether the tensor `name` is an input or output of the operator or, by its name, a gradient.
bool concerns(const Layout& layout, const std::string& name) {
  return contains(layout.required, name) || contains(layout.optional, name) || contains(layout.outputs, name) || name.starts_with("d_");
}

void check_contents(const CheckFile& file, const Layout& layout) {
  for (const std::string& name : layout.required)
    BRAID_CHECK(file.find(name).defined(), file.name, ": ", file.op, " needs the tensor ", name, ", which the file lacks");
  for (const auto& [name, tensor] : file.tensors) {
    if (!concerns(layout, name)) continue;
    const bool is_gradient = name.starts_with("d_");
    const std::string base = is_gradient ? name.substr(2) : name;
    BRAID_CHECK(!base.starts_with("d_") && concerns(layout, base), file.name, ": ", file.op, " has neither an input nor an output named ", base,
                ", got the tensor ", name);
    BRAID_CHECK(is_floating(tensor.dtype()), file.name, ": ", name, " must be of a floating type, got ", tensor.dtype());
    const bool has_value = base == "initial_state" || contains(layout.outputs, base) || file.find(base).defined();
    BRAID_CHECK(!is_gradient || has_value, file.name, ": ", name, " is there to be checked, but not the tensor ", base);
  }
  static const Names kOfTheFile = {"op", "format"};  // PyTorch's writer says format = pt
  for (const auto& [key, value] : file.attributes)
    BRAID_CHECK(contains(kOfTheFile, key) || contains(layout.attributes, key), file.name, ": ", file.op, " has no attribute ", key, ", only ",
                layout.attributes.empty() ? "op" : listed(layout.attributes), ", got \"", value, "\"");
}

}  // namespace

std::string check_file_help() {
  std::string text =
      "a check file is safetensors with the operator's name as op in its metadata, beside its attributes (all texts), and the tensors\n"
      "cu_seqlens (i64 [S + 1]), inputs, outputs, d_ of outputs (given) and d_ of inputs (checked); more in examples/check_file.md";
  for (const auto& [name, layout] : layouts()) {
    text += "\n  " + name + ": " + listed(layout.required) + (layout.optional.empty() ? "" : "; if wanted " + listed(layout.optional)) + "; gives " +
            listed(layout.outputs);
    if (!layout.attributes.empty()) text += "; attributes " + listed(layout.attributes);
  }
  return text;
}

CheckFile read_check_file(const std::string& path) {
  const Safetensors source{Path(path)};
  CheckFile file;
  file.name = path;
  file.attributes = source.metadata();
  const auto op = file.attributes.find("op");
  std::string known;
  for (const auto& [name, layout] : layouts()) known += (known.empty() ? "" : ", ") + name;
  BRAID_CHECK(op != file.attributes.end(), path, ": the metadata must name the operator under the key op, one of ", known, ", got none");
  file.op = op->second;
  const auto layout = layouts().find(file.op);
  BRAID_CHECK(layout != layouts().end(), path, ": op must be one of ", known, ", got \"", file.op, "\"");
  BRAID_CHECK(source.contains("cu_seqlens"), path, ": ", file.op, " needs the tensor cu_seqlens, which the file lacks");
  for (const Safetensors::Entry& entry : source.entries()) {
    if (entry.name == "cu_seqlens") file.cu_seqlens = read_cu_seqlens(file, source.get(entry.name));
    else if (entry.dtype) file.tensors[entry.name] = source.get(entry.name);
    else BRAID_CHECK(!concerns(layout->second, entry.name), path, ": ", entry.name, " must be of a floating type, got ", entry.dtype_name);
  }
  check_contents(file, layout->second);
  try {
    const Sequences sequences(file.cu_seqlens);
    const Tensor first = file.find(layout->second.required[0]);
    if (first.rank() > 0) sequences.require_tokens(file.op, layout->second.required[0], first.size(0));
  } catch (const Error& error) {
    fail(path, ": ", error.what());
  }
  return file;
}

Results run_operator(Context& ctx, const CheckFile& file, const RunOptions& options) {
  const Sequences seqs(file.cu_seqlens);
  try {
    if (file.op == "linear_recurrence") return run<LinearRecurrence>(ctx, file, options, {.seqs = seqs, .form = options.form});
    if (file.op == "gated_linear_attention")
      return run<GatedLinearAttention>(ctx, file, options, {.seqs = seqs, .scale = scale_of(file), .form = options.form});
    if (file.op == "gated_delta_rule")
      return run<GatedDeltaRule>(ctx, file, options, {.seqs = seqs, .scale = scale_of(file), .qk_l2norm = qk_l2norm_of(file), .form = options.form});
    if (file.op == "attention")
      return run<Attention>(ctx, file, options, {.q_seqs = seqs, .k_seqs = seqs, .scale = scale_of(file), .window = window_of(file)});
    return run<ShortConv>(ctx, file, options, {.seqs = seqs, .activation = activation_of(file)});
  } catch (const Error& error) {
    const std::string message = error.what();
    fail(message.starts_with(file.name) ? "" : file.name + ": ", message);
  }
}

CheckFile rounded(Context& ctx, const CheckFile& file, DType dtype) {
  CheckFile result = file;
  for (auto& [name, tensor] : result.tensors) {
    const std::string_view base = name.starts_with("d_") ? std::string_view(name).substr(2) : std::string_view(name);
    if (is_floating(tensor.dtype())) tensor = converted(ctx, tensor, dtype_in_run(base, dtype));
  }
  return result;
}

}  // namespace braid::cli
