// Packed training batches from token data sets.
//
// A data set is one stream of tokens in which documents begin at known places. The stream is cut into rows at multiples of `context`;
// a row is packed as the sequences its documents make in it, so no sequence exceeds `context` or spans two documents, nothing is
// padded and no token is left out (the last row of a data set may be short). A token's target is the next token of its document,
// also where a row ends; a document's last token has none.
#pragma once
#include <memory>
#include <string>

#include "train/batch.h"

namespace braid {

/// Tokens of documents, back to back: all that the loader needs of a data set.
class TokenSource {
 public:
  virtual ~TokenSource() = default;
  virtual int64_t num_tokens() const = 0;
  /// Where the document of token `position` ends.
  virtual int64_t document_end(int64_t position) const = 0;
  /// Tokens [begin, begin + count) into `out`.
  virtual void read(int64_t begin, int64_t count, int64_t* out) const = 0;
  /// A number that differs for different contents.
  virtual uint64_t fingerprint() const = 0;
};

/// The HDF5 token data set at `path`. Throws Error when it is damaged or holds a token of `vocab_size` or above (0: not checked).
std::shared_ptr<const TokenSource> open_token_source(const std::string& path, int64_t vocab_size = 0);
/// Documents held in memory. Empty documents are left out.
std::shared_ptr<const TokenSource> make_token_source(const std::vector<std::vector<int64_t>>& documents);

/// Whether one of the first `num_tokens` tokens (0: of all) has a target: another one of its document after it.
bool has_target(const TokenSource& source, int64_t num_tokens = 0);

struct WeightedSource {
  std::shared_ptr<const TokenSource> source;
  double weight = 1;  // share of rows drawn from it; need not sum to 1
};

struct LoaderOptions {
  int64_t batch_tokens = 0;  // of one step, over all ranks and micro-batches; a multiple of context · ranks · micro-batches
  int64_t context = 0;
  uint64_t seed = 0;
  bool shuffle = true;
  BatchShare share;
};

/// Rows in an order that is a pure function of the seed: each epoch of a data set visits every row once, in an order of its own;
/// data sets take turns so that after n rows each has had its share of n, off by less than the number of data sets. The rows of a step are
/// consecutive in this order; rank r of R takes the r-th part of them.
class DataLoader final : public BatchSource {
 public:
  /// Throws Error on an empty data set, a weight that is not positive, or sizes that do not share out evenly.
  DataLoader(std::vector<WeightedSource> sources, const LoaderOptions& options);
  StepBatch next(Context& ctx) override;
  DataPosition position() const override;
  void restore(const DataPosition& position) override;

  /// Times every row of data set `i` has been visited, as a fraction.
  double epochs(int64_t i) const;

 private:
  struct Row {
    int64_t source, index;
  };
  Row draw();
  uint64_t fingerprint() const;

  std::vector<WeightedSource> sources_;
  LoaderOptions options_;
  std::vector<int64_t> drawn_;
};

/// Tokens [begin, end) of a source as a batch of sequences of at most `context` tokens (`begin` a multiple of it).
Batch read_rows(Context& ctx, const TokenSource& source, int64_t begin, int64_t end, int64_t context);

/// A pseudo-random permutation of 0 … size − 1 that takes no memory: where `index` goes. A Feistel network of four Philox rounds on
/// the next power of four, walked until it falls inside (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002).
int64_t permuted(int64_t index, int64_t size, uint64_t key);

}  // namespace braid
