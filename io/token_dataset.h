// Token data sets: one HDF5 file with /tokens (uint16 when vocab_size ≤ 65536, else uint32; chunked, compressed), /documents (uint64,
// where each document starts), and the root's attributes vocab_size, tokenizer and sha256 (of the token bytes, little endian).
// Documents are told apart by /documents alone: no separator token is written between them.
#pragma once
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "io/file.h"
#include "io/hdf5.h"
#include "io/sha256.h"

namespace braid {

/// Writes a data set in a stream: memory does not grow with the tokens. The file appears under its name in close(), whole; without
/// close nothing is left.
class TokenDatasetWriter {
 public:
  TokenDatasetWriter(const Path& path, int64_t vocab_size, const std::string& tokenizer);
  ~TokenDatasetWriter();
  /// Starts a document; it may stay empty.
  void begin_document();
  /// Adds tokens to the document begun last. Error for a token outside [0, vocab_size).
  void append(const int64_t* tokens, int64_t count);
  /// begin_document and append in one.
  void add_document(const std::vector<int64_t>& tokens);
  int64_t num_tokens() const;
  int64_t num_documents() const;
  /// Writes the rest, syncs, renames. Error when there is no token at all.
  void close();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Reads a data set at random places; files may be larger than memory (document offsets are held, 8 bytes each). One object is used
/// by one thread at a time.
class TokenDataset {
 public:
  /// Error, naming the file, when it is not a data set: missing or truncated, attributes or datasets missing or of another kind,
  /// offsets that fall, do not start at 0, or lie outside.
  explicit TokenDataset(const Path& path);
  TokenDataset(TokenDataset&&) noexcept;
  ~TokenDataset();

  const Path& path() const;
  int64_t num_tokens() const;
  int64_t num_documents() const;
  int64_t vocab_size() const;
  const std::string& tokenizer() const;
  const std::string& sha256() const;

  /// Tokens [begin, begin + count). Error when that is not inside, or when a token there is not below vocab_size.
  std::vector<int64_t> read(int64_t begin, int64_t count) const;
  void read(int64_t begin, int64_t count, int64_t* to) const;
  int64_t document_begin(int64_t document) const;
  int64_t document_end(int64_t document) const;
  /// The document that token `position` belongs to.
  int64_t document_of(int64_t position) const;

  /// Reads all tokens; Error when one is out of range or they do not have the digest `sha256`.
  void verify() const;

 private:
  void require_range(int64_t begin, int64_t count) const;
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace braid
