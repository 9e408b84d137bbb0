// braid generate: continues a prompt, token by token.
#include <chrono>
#include <iostream>

#include "io/file.h"
#include "io/json.h"
#include "io/tokenizer.h"
#include "train/cli/commands.h"
#include "train/cli/model_source.h"
#include "train/cli/options.h"
#include "train/cli/sampling.h"
#include "train/decoder.h"
#include "train/interrupt.h"

namespace braid::cli {
namespace {

struct GenerateOptions {
  std::string model, prompt, prompt_file, tokenizer = "bytes", dtype, json;
  int64_t max_tokens = 256, chunk = 512, seed = 0;
  SamplingOptions sampling;
  DeviceOptions device;
};

struct Decoded {
  std::vector<int64_t> tokens;
  double prefill_ms = 0, decode_ms = 0;
  int64_t state_bytes = 0;
};

double ms_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

Decoded decode(Context& ctx, const HybridLm& model, const Tokenizer& tokenizer, const std::vector<int64_t>& prompt, const GenerateOptions& o) {
  InterruptGuard guard;
  Decoded result;
  Random random(static_cast<uint64_t>(o.seed));
  Decoder decoder(ctx, model, static_cast<int64_t>(prompt.size()) + o.max_tokens);
  auto start = std::chrono::steady_clock::now();
  std::vector<double> logits = decoder.prefill(prompt, o.chunk);
  result.prefill_ms = ms_since(start);
  start = std::chrono::steady_clock::now();
  for (int64_t i = 0; i < o.max_tokens && !interrupted(); ++i) {
    logits.resize(std::min<size_t>(logits.size(), tokenizer.vocab_size()));  // ids that the tokenizer has no text for are never drawn
    const int64_t token = sample(logits, o.sampling, random);
    result.tokens.push_back(token);
    std::cout << tokenizer.decode({token}) << std::flush;
    if (i + 1 < o.max_tokens) logits = decoder.advance(token);
  }
  result.decode_ms = ms_since(start);
  result.state_bytes = decoder.state_bytes();
  return result;
}

void declare(Options& options, GenerateOptions& o) {
  options.text("model", "model directory, run or checkpoint", o.model);
  options.require("model");
  options.text("prompt", "what to continue", o.prompt);
  options.text("prompt-file", "a file to continue", o.prompt_file);
  options.text("tokenizer", "bytes (SentencePiece models are not supported yet)", o.tokenizer);
  options.integer("max-tokens", "tokens to add", o.max_tokens, 1);
  options.number("temperature", "0: always the likeliest token", o.sampling.temperature);
  options.integer("top-k", "draw among the k likeliest; 0: all", o.sampling.top_k);
  options.number("top-p", "draw among the likeliest that together have this probability", o.sampling.top_p, 0, 1);
  options.integer("seed", "of the draws", o.seed, 0, std::numeric_limits<int64_t>::max());
  options.integer("chunk", "tokens of the prompt taken at once", o.chunk, 1, 1 << 20);
  options.choice("dtype", "what is computed in (default: f32 on the CPU, bf16 on a GPU: the delta rule takes a prompt in chunks in no other there)",
                 o.dtype, {"f64", "f32", "bf16"});
  options.device(o.device);
  options.reads({"model", "prompt-file"});
  options.json(o.json);
}

}  // namespace

int run_generate(const Arguments& arguments) {
  GenerateOptions o;
  Options options("generate", "continue a prompt; memory per token does not grow in recurrent layers",
                  "braid generate --model RUN --prompt \"The \" --temperature 0.8 --top-p 0.95 --max-tokens 200");
  declare(options, o);
  if (!options.parse(arguments)) return kDone;
  require_path("--model", o.model);
  require_writable_file("--json", o.json);
  BRAID_CHECK(!options.given("prompt") || !options.given("prompt-file"), "--prompt and --prompt-file must not be given together, got both");
  if (options.given("prompt-file")) {
    require_file("--prompt-file", o.prompt_file);
    o.prompt = read_file(o.prompt_file);
  }
  const auto tokenizer = make_tokenizer(o.tokenizer);
  const std::vector<int64_t> prompt = tokenizer->encode(o.prompt);
  BRAID_CHECK(!prompt.empty(), "--prompt must have at least one token, got none");
  Context ctx = make_context(o.device, o.dtype.empty() ? DType::f32 : parse_compute_dtype("--dtype", o.dtype));
  const DType dtype = compute_dtype(o.dtype, ctx);
  const auto model = load_named_model(ctx, "--model", o.model, accumulator(dtype));
  if (dtype == DType::bf16) set_compute_dtype(ctx, *model, dtype);
  BRAID_CHECK(tokenizer->vocab_size() <= model->config().vocab_size, "--tokenizer must have at most ", model->config().vocab_size,
              " tokens, the model's vocabulary, got ", o.tokenizer, " with ", tokenizer->vocab_size());
  std::cout << o.prompt << std::flush;
  const Decoded result = decode(ctx, *model, *tokenizer, prompt, o);
  std::cout << '\n';
  if (!o.json.empty()) {
    const double per_token = result.decode_ms / static_cast<double>(std::max<size_t>(1, result.tokens.size()));
    write_json(o.json, {{"prompt_tokens", prompt.size()},
                        {"tokens", result.tokens},
                        {"prefill_ms", result.prefill_ms},
                        {"ms_per_token", per_token},
                        {"state_bytes", result.state_bytes}});
  }
  return kDone;
}

}  // namespace braid::cli
