// Text to token ids and back.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace braid {

/// Stateless and thread-safe. A document may be encoded piece by piece, where pieces end as TextReader ends them.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  /// What make_tokenizer takes to make this one again; a data set's attribute `tokenizer`.
  virtual const std::string& name() const = 0;
  virtual int64_t vocab_size() const = 0;
  virtual std::vector<int64_t> encode(std::string_view text) const = 0;
  /// Error for an id outside [0, vocab_size).
  virtual std::string decode(const std::vector<int64_t>& tokens) const = 0;
};

/// "bytes": ids 0–255 are the byte values; no special tokens, so that vocab_size is 256 and every text round-trips. Another name is
/// an Error that says what there is.
std::unique_ptr<Tokenizer> make_tokenizer(const std::string& name);

}  // namespace braid
