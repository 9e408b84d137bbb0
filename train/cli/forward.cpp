// braid forward: logits, loss and gradients, for anyone to compare an implementation with.
#include <iostream>

#include "io/json.h"
#include "io/safetensors.h"
#include "train/cli/commands.h"
#include "train/cli/model_source.h"
#include "train/cli/options.h"
#include "train/cli/table.h"

namespace braid::cli {
namespace {

struct ForwardOptions {
  std::string model, tokens, out, dtype = "f64", json;
  bool grad = false;
  DeviceOptions device;
};

struct TokenFile {
  std::vector<int64_t> tokens;
  Sequences seqs;
};

std::vector<int64_t> integers(const Safetensors& file, const std::string& path, const std::string& name) {
  Context host(1);
  BRAID_CHECK(file.contains(name), path, ": expected the tensor ", name, " (i64), which the file lacks");
  const Tensor tensor = file.get(name);
  BRAID_CHECK(tensor.rank() == 1 && (tensor.dtype() == DType::i64 || tensor.dtype() == DType::i32), path, ": ", name,
              " must be i64 with one dimension, got ", tensor.dtype(), " ", tensor.shape());
  return to_vector<int64_t>(host, tensor);
}

TokenFile read_tokens(const std::string& path, int64_t vocab_size) {
  const Safetensors file{Path(path)};
  TokenFile result{integers(file, path, "tokens"), {}};
  const auto count = static_cast<int64_t>(result.tokens.size());
  for (int64_t i = 0; i < count; ++i)
    BRAID_CHECK(result.tokens[i] >= 0 && result.tokens[i] < vocab_size, path, ": tokens must be in [0, ", vocab_size, "), got ", result.tokens[i],
                " at index ", i);
  if (!file.contains("cu_seqlens")) {
    result.seqs = Sequences::single(count);
    return result;
  }
  try {
    result.seqs = Sequences(integers(file, path, "cu_seqlens"));
    result.seqs.require_tokens("forward", "tokens", count);
  } catch (const Error& error) {
    const std::string message = error.what();
    fail(message.starts_with(path) ? "" : path + ": ", message);
  }
  return result;
}

}  // namespace

int run_forward(const Arguments& arguments) {
  ForwardOptions o;
  Options options("forward", "write logits [N, vocab], loss (a scalar) and, with --grad, grad.<parameter>",
                  "braid forward --model DIR --tokens T.safetensors --out O.safetensors --grad --dtype f64");
  options.text("model", "model directory, run or checkpoint", o.model);
  options.require("model");
  options.text("tokens", "safetensors file with tokens (i64 [N]) and optionally cu_seqlens (i64 [S+1]); other tensors are ignored", o.tokens);
  options.require("tokens");
  options.text("out", "safetensors file to write; f64 for f64, else f32", o.out);
  options.require("out");
  options.flag("grad", "also the gradient of the loss for every parameter", o.grad);
  options.choice("dtype", "what is computed in", o.dtype, {"f64", "f32", "bf16"});
  options.device(o.device);
  options.reads({"model", "tokens"});
  options.writes("out");
  options.json(o.json);
  if (!options.parse(arguments)) return kDone;
  require_path("--model", o.model);
  require_file("--tokens", o.tokens);
  require_writable_file("--out", o.out);
  require_writable_file("--json", o.json);
  const DType dtype = parse_compute_dtype("--dtype", o.dtype), out_dtype = accumulator(dtype);
  Context ctx = make_context(o.device, dtype);
  const auto model = load_named_model(ctx, "--model", o.model, out_dtype);
  if (dtype == DType::bf16) set_compute_dtype(ctx, *model, dtype);
  const TokenFile input = read_tokens(o.tokens, model->config().vocab_size);
  const auto count = static_cast<int64_t>(input.tokens.size());
  const Tensor tokens = from_vector<int64_t>(ctx, input.tokens, {count});
  const Tensor targets = from_vector<int64_t>(ctx, next_token_targets(input.tokens, input.seqs), {count});
  std::vector<NamedTensor> results;
  const Tensor logits = model->logits(ctx, model->hidden(ctx, tokens, input.seqs));
  results.push_back({"logits", converted(ctx, logits, out_dtype)});
  if (o.grad) zero_grads(ctx, *model);
  Tape tape;
  WithTape recording(ctx, o.grad ? &tape : nullptr);
  const Tensor loss = model->loss(ctx, tokens, targets, input.seqs).loss;
  results.push_back({"loss", converted(ctx, loss.detached(), out_dtype)});
  if (o.grad) {
    tape.backward(ctx, loss);
    for (const Parameter* parameter : model->parameters())
      results.push_back({"grad." + parameter->name, converted(ctx, parameter->grad.view(parameter->shape), out_dtype)});
  }
  write_safetensors(ctx, o.out, results);
  if (!o.json.empty()) write_json(o.json, {{"tokens", count}, {"sequences", input.seqs.count()}, {"loss", item(ctx, loss)}});
  std::cout << o.out << ": " << count << " tokens in " << input.seqs.count() << " sequences, loss " << number(item(ctx, loss), 10) << '\n';
  return kDone;
}

}  // namespace braid::cli
