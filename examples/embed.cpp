// Braid inside a program of one's own: build a model, train it, read gradients, save it (to the directory named, if one is) for
// `braid generate --model DIRECTORY` or anybody who reads safetensors. Public headers only.
#include <cstdio>

#include "io/model_directory.h"
#include "models/hybrid_lm.h"
#include "models/presets.h"
#include "train/optimizer.h"

int main(int argc, char** argv) try {
  using namespace braid;
  Context ctx(0);  // every usable core

  // A hybrid of Gated DeltaNet with one full-attention layer in every three.
  HybridLm model(preset("tiny-gdn-3-1"));
  initialize(ctx, model, DType::f32, model.config().initializer_range, /*seed=*/1);
  AdamW optimizer(ctx, model.parameters(), {});

  // Two packed sequences: no padding, no mask.
  const std::vector<int64_t> text = {'h', 'e', 'l', 'l', 'o', ' ', 'w', 'o', 'r', 'l', 'd', 'b', 'r', 'a', 'i', 'd'};
  const Sequences seqs = Sequences::of_lengths({11, 5});
  const Tensor tokens = from_vector(ctx, text, {16}), targets = from_vector(ctx, next_token_targets(text, seqs), {16});

  double first = 0, last = 0;
  for (int step = 0; step < 30; ++step) {
    zero_grads(ctx, model);
    Tape tape;
    WithTape recording(ctx, &tape);
    const Tensor loss = model.loss(ctx, tokens, targets, seqs).loss;
    tape.backward(ctx, loss);
    optimizer.step(ctx, 3e-3, clip_scale(optimizer.gradient_norm(ctx), 1.0));
    last = item(ctx, loss);
    if (step == 0) first = last;
  }
  const Parameter& A_log = model.parameter("model.layers.0.attn.A_log");
  std::printf("%lld parameters, loss %.3f -> %.3f\n", static_cast<long long>(model.num_parameters()), first, last);
  for (double gradient : to_vector<double>(ctx, A_log.grad)) std::printf("gradient of %s: %g\n", A_log.name.c_str(), gradient);
  if (argc > 1) save_model_directory(ctx, argv[1], model);
  return last < 0.5 * first ? 0 : 1;
} catch (const braid::Error& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 2;
}
