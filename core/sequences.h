// The layout of a packed batch: N tokens of S sequences, back to back.
#pragma once
#include <memory>
#include <string_view>
#include <vector>

#include "core/tensor.h"

namespace braid {

/// cu_seqlens, checked once: starts at 0, never falls, ends at N. Empty and one-token sequences are legal. Cheap to copy.
class Sequences {
 public:
  Sequences() : Sequences(std::vector<int64_t>{0}) {}
  /// Throws Error when the values do not start at 0 or fall.
  explicit Sequences(std::vector<int64_t> cu_seqlens);
  /// One sequence of `num_tokens`.
  static Sequences single(int64_t num_tokens) { return Sequences({0, num_tokens}); }
  /// `num_sequences` sequences of `length` tokens.
  static Sequences dense(int64_t num_sequences, int64_t length);
  static Sequences of_lengths(const std::vector<int64_t>& lengths);

  int64_t num_tokens() const { return data_->cu_seqlens.back(); }
  int64_t count() const { return static_cast<int64_t>(data_->cu_seqlens.size()) - 1; }
  int64_t begin(int64_t s) const { return data_->cu_seqlens[s]; }
  int64_t end(int64_t s) const { return data_->cu_seqlens[s + 1]; }
  int64_t length(int64_t s) const { return end(s) - begin(s); }
  int64_t max_length() const { return data_->max_length; }
  const std::vector<int64_t>& cu_seqlens() const { return data_->cu_seqlens; }

  /// cu_seqlens as an int64 tensor [S+1] on the context's device; copied there once per layout.
  const Tensor& on_device(Context& ctx) const;

  /// Throws Error, in the name of `op`, unless there are `num_tokens` tokens.
  void require_tokens(std::string_view op, std::string_view argument, int64_t num_tokens) const;

 private:
  struct Data {
    std::vector<int64_t> cu_seqlens;
    int64_t max_length = 0;
    Tensor device_copy;
  };
  std::shared_ptr<Data> data_;
};

}  // namespace braid
