#include "train/decoder.h"

#include <algorithm>

#ifdef BRAID_WITH_CUDA
#include "core/transfers.h"
#include "cuda/runtime/runtime.h"
#include "ops/decode_attention.h"
#endif

namespace braid {

Decoder::Decoder(Context& ctx, const HybridLm& model, int64_t capacity)
    : ctx_(ctx), model_(model), capacity_(capacity), can_record_(kWithCuda && !ctx.on_cpu()), state_(make_state(model, ctx, 1)) {}

Tensor Decoder::step(const Tensor& token, State& state) const {
  return converted(ctx_, model_.logits(ctx_, model_.hidden(ctx_, token, one_, &state)), DType::f32);
}

std::vector<double> Decoder::run(const std::vector<int64_t>& tokens) {
  const auto count = static_cast<int64_t>(tokens.size());
  const Tensor hidden = model_.hidden(ctx_, from_vector<int64_t>(ctx_, tokens, {count}), Sequences::single(count), &state_);
  position_ += count;
  return to_vector<double>(ctx_, model_.logits(ctx_, contiguous(ctx_, hidden.slice(0, count - 1, count))));
}

std::vector<double> Decoder::prefill(const std::vector<int64_t>& tokens, int64_t chunk) {
  BRAID_CHECK(!tokens.empty() && chunk >= 1, "decoder: a prompt must have at least one token, and a chunk too, got ", tokens.size(), " and ", chunk);
  BRAID_CHECK(!recorded_, "decoder: the prompt must come before the first token");
  std::vector<double> logits;
  for (size_t begin = 0; begin < tokens.size(); begin += chunk)
    logits = run({tokens.begin() + begin, tokens.begin() + std::min(tokens.size(), begin + chunk)});
  return logits;
}

std::vector<double> Decoder::advance(int64_t token) {
  BRAID_CHECK(token >= 0 && token < model_.config().vocab_size, "decoder: a token must be in [0, ", model_.config().vocab_size, "), got ", token);
  BRAID_CHECK(position_ < capacity_, "decoder: there is room for ", capacity_, " tokens, and they are there");
  if (position_ == 0 || !can_record_) return run({token});  // a graph continues a state; there is none yet
  if (!recorded_) record();
  return recorded_ ? replay(token) : run({token});
}

#ifdef BRAID_WITH_CUDA

struct Decoder::Recorded {
  Tensor token, logits;
  cuda::Graph graph;
};

namespace {

/// The state's tensors of one layer that a step replaces, where it does not write them in place.
std::vector<Tensor*> replaced(LayerState& layer) {
  std::vector<Tensor*> result = {&layer.recurrent};
  for (Tensor& tail : layer.conv) result.push_back(&tail);
  return result;
}

}  // namespace

void Decoder::record() {
  for (size_t i = 0; i < state_.layers.size(); ++i) {
    const AttentionConfig* attention = model_.config().attention_of(static_cast<int64_t>(i));
    if (!attention) continue;
    const int64_t window = attention->window_size;
    for (KvCache& cache : state_.layers[i].kv) {
      cache.make_ring(ctx_, window > 0 ? window : capacity_, position_);
      can_record_ &= cache.ring_k().defined();
    }
  }
  if (!can_record_) return;
  auto recorded = std::make_unique<Recorded>();
  recorded->token = from_vector<int64_t>(ctx_, {0}, {1});
  state_.device_positions = from_vector<int64_t>(ctx_, {position_}, {1});
  {
    State rehearsal = state_.clone(ctx_);  // loads kernels and plans products, which a recording must not
    step(recorded->token, rehearsal);
  }
  ctx_.synchronize();
  recorded->graph.record(ctx_, [&] {
    State after = state_.shared();
    recorded->logits = step(recorded->token, after);
    for (size_t i = 0; i < state_.layers.size(); ++i) {
      const std::vector<Tensor*> to = replaced(state_.layers[i]), from = replaced(after.layers[i]);
      for (size_t j = 0; j < to.size(); ++j)
        if (to[j]->defined() && to[j]->raw() != from[j]->raw()) copy_into(ctx_, *to[j], *from[j]);
    }
    advance_positions_cuda(ctx_, state_.device_positions, 1);
  });
  recorded_ = std::move(recorded);
}

std::vector<double> Decoder::replay(int64_t token) {
  DeviceTransfers& transfers = transfers_of(ctx_.device());
  transfers.upload(recorded_->token.raw(), &token, sizeof(token), ctx_.stream());
  recorded_->graph.replay(ctx_);
  ++position_;
  const auto read = transfers.read(recorded_->logits.raw(), recorded_->logits.nbytes(), ctx_.stream());
  const auto* values = reinterpret_cast<const float*>(read->wait());
  return {values, values + recorded_->logits.numel()};
}

#else

struct Decoder::Recorded {};
void Decoder::record() { can_record_ = false; }
std::vector<double> Decoder::replay(int64_t token) { return run({token}); }

#endif

Decoder::~Decoder() = default;

}  // namespace braid
