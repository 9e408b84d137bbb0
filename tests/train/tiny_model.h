// A language model just large enough to train: embedding, norm, head (it sees one token only).
#pragma once
#include <unistd.h>

#include <filesystem>
#include <string>

#include "ops/embedding.h"
#include "ops/linear_cross_entropy.h"
#include "ops/rms_norm.h"
#include "tests/support/error_of.h"
#include "train/score.h"

namespace braid::testing {

class TinyModel final : public Module {
 public:
  TinyModel(Context& ctx, int64_t vocab_size, int64_t width, DType dtype = DType::f32, uint64_t seed = 1) {
    declare(embedding_, "embedding.weight", {vocab_size, width});
    declare(norm_, "norm.weight", {width}, Init::ones);
    declare(head_, "head.weight", {vocab_size, width});
    initialize(ctx, *this, dtype, 0.3, seed);
  }
  ScoreFunction score() const {
    return [this](Context& ctx, const Batch& batch, const LossOptions& options) {
      const Tensor x = apply<Embedding>(ctx, {batch.tokens, embedding_.use(ctx)}).y;
      const Tensor y = apply<RmsNorm>(ctx, {x, norm_.use(ctx), {}}).y;
      LinearCrossEntropy::Attrs attrs;
      attrs.denominator = options.denominator;
      attrs.predict = options.predict;
      const auto out = apply<LinearCrossEntropy>(ctx, {y, head_.use(ctx), batch.targets}, attrs);
      return LossOutput{out.loss, out.token_loss, out.prediction};
    };
  }
  /// Every parameter's values, one after the other.
  std::vector<double> values(Context& ctx) const {
    std::vector<double> all;
    for (const Parameter* parameter : parameters())
      for (double value : to_vector<double>(ctx, parameter->value)) all.push_back(value);
    return all;
  }

 private:
  Parameter embedding_, norm_, head_;
};

/// An empty directory of its own, removed at the end.
class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    std::string pattern = (std::filesystem::temp_directory_path() / "braid-test-XXXXXX").string();
    if (!::mkdtemp(pattern.data())) fail("cannot make ", pattern);
    path_ = pattern;
  }
  ~TemporaryDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

/// Documents whose tokens tell where they are from: 0, 1, 2, … through all of them, modulo `vocab_size` when it is given.
inline std::vector<std::vector<int64_t>> numbered_documents(const std::vector<int64_t>& lengths, int64_t vocab_size = 0) {
  std::vector<std::vector<int64_t>> documents;
  int64_t next = 0;
  for (int64_t length : lengths) {
    auto& document = documents.emplace_back();
    for (int64_t i = 0; i < length; ++i, ++next) document.push_back(vocab_size ? next % vocab_size : next);
  }
  return documents;
}

}  // namespace braid::testing
