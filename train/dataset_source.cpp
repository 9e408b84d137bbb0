#include "io/token_dataset.h"
#include "train/data_loader.h"

namespace braid {
namespace {

class DatasetSource final : public TokenSource {
 public:
  explicit DatasetSource(const std::string& path) : dataset_(path) {}
  const TokenDataset& dataset() const { return dataset_; }
  int64_t num_tokens() const override { return dataset_.num_tokens(); }
  int64_t document_end(int64_t position) const override { return dataset_.document_end(dataset_.document_of(position)); }
  void read(int64_t begin, int64_t count, int64_t* out) const override { dataset_.read(begin, count, out); }
  uint64_t fingerprint() const override {
    uint64_t hash = 0;
    for (char c : dataset_.sha256()) hash = mixed_hash(hash, static_cast<unsigned char>(c));
    return hash;
  }

 private:
  TokenDataset dataset_;
};

}  // namespace

std::shared_ptr<const TokenSource> open_token_source(const std::string& path, int64_t vocab_size) {
  auto source = std::make_shared<DatasetSource>(path);
  BRAID_CHECK(vocab_size == 0 || source->dataset().vocab_size() <= vocab_size, path, ": its vocabulary of ", source->dataset().vocab_size(),
              " tokens exceeds the model's of ", vocab_size);
  return source;
}

}  // namespace braid
