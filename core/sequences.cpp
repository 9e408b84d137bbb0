#include "core/sequences.h"

#include <algorithm>

#include "core/context.h"

namespace braid {

Sequences::Sequences(std::vector<int64_t> cu_seqlens) : data_(std::make_shared<Data>()) {
  BRAID_CHECK(!cu_seqlens.empty() && cu_seqlens.front() == 0, "cu_seqlens: must start with 0",
              cu_seqlens.empty() ? std::string(", got nothing") : ", got " + std::to_string(cu_seqlens.front()));
  for (size_t s = 1; s < cu_seqlens.size(); ++s) {
    BRAID_CHECK(cu_seqlens[s] >= cu_seqlens[s - 1], "cu_seqlens: must not fall, got ", cu_seqlens[s - 1], " then ", cu_seqlens[s], " at index ", s);
    data_->max_length = std::max(data_->max_length, cu_seqlens[s] - cu_seqlens[s - 1]);
  }
  data_->cu_seqlens = std::move(cu_seqlens);
}

Sequences Sequences::dense(int64_t num_sequences, int64_t length) { return of_lengths(std::vector<int64_t>(num_sequences, length)); }

Sequences Sequences::of_lengths(const std::vector<int64_t>& lengths) {
  std::vector<int64_t> cu_seqlens = {0};
  for (int64_t length : lengths) cu_seqlens.push_back(cu_seqlens.back() + length);
  return Sequences(std::move(cu_seqlens));
}

const Tensor& Sequences::on_device(Context& ctx) const {
  Tensor& copy = data_->device_copy;
  if (!copy || copy.device() != ctx.device()) copy = from_vector(ctx, data_->cu_seqlens, {count() + 1});
  return copy;
}

void Sequences::require_tokens(std::string_view op, std::string_view argument, int64_t num_tokens) const {
  BRAID_CHECK(this->num_tokens() == num_tokens, op, ": cu_seqlens must end at N = ", num_tokens, " tokens of ", argument, ", got ",
              this->num_tokens());
}

}  // namespace braid
