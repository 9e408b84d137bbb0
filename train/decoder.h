// Decoding one sequence: a prompt in chunks, then token by token.
#pragma once
#include <memory>

#include "models/hybrid_lm.h"

namespace braid {

/// On a GPU the step of one token is recorded once as a graph and replayed: one launch a token, whatever the position. The model must outlive
/// this and keep its parameters where they are.
class Decoder {
 public:
  /// `capacity`: tokens of prompt and continuation together that there must be room for (attention's caches are made that large).
  Decoder(Context& ctx, const HybridLm& model, int64_t capacity);
  ~Decoder();
  Decoder(const Decoder&) = delete;
  Decoder& operator=(const Decoder&) = delete;

  /// Takes `tokens` (at least one) in chunks of `chunk`, so that memory does not grow with them beyond what the state holds. Logits after the last.
  /// Only before the first advance.
  std::vector<double> prefill(const std::vector<int64_t>& tokens, int64_t chunk);
  /// One more token; logits after it.
  std::vector<double> advance(int64_t token);

  /// Tokens taken so far.
  int64_t position() const { return position_; }
  int64_t state_bytes() const { return state_.bytes(); }
  /// Whether tokens are replayed from a graph.
  bool has_graph() const { return recorded_ != nullptr; }

 private:
  struct Recorded;
  std::vector<double> run(const std::vector<int64_t>& tokens);
  Tensor step(const Tensor& token, State& state) const;
  void record();
  std::vector<double> replay(int64_t token);

  Context& ctx_;
  const HybridLm& model_;
  int64_t capacity_, position_ = 0;
  bool can_record_;
  Sequences one_ = Sequences::single(1);
  State state_;
  std::unique_ptr<Recorded> recorded_;
};

}  // namespace braid
