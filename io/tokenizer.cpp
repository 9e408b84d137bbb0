#include "io/tokenizer.h"

#include "core/error.h"

namespace braid {
namespace {

class ByteTokenizer : public Tokenizer {
 public:
  const std::string& name() const override {
    static const std::string kName = "bytes";
    return kName;
  }
  int64_t vocab_size() const override { return 256; }

  std::vector<int64_t> encode(std::string_view text) const override {
    std::vector<int64_t> tokens(text.size());
    for (size_t i = 0; i < text.size(); ++i) tokens[i] = static_cast<unsigned char>(text[i]);
    return tokens;
  }

  std::string decode(const std::vector<int64_t>& tokens) const override {
    std::string text(tokens.size(), '\0');
    for (size_t i = 0; i < tokens.size(); ++i) {
      BRAID_CHECK(tokens[i] >= 0 && tokens[i] < 256, "tokenizer bytes: token ", i, " must be in [0, 256), got ", tokens[i]);
      text[i] = static_cast<char>(tokens[i]);
    }
    return text;
  }
};

}  // namespace

std::unique_ptr<Tokenizer> make_tokenizer(const std::string& name) {
  BRAID_CHECK(name == "bytes", "tokenizer: expected \"bytes\", got \"", name, "\"; SentencePiece models are not supported yet");
  return std::make_unique<ByteTokenizer>();
}

}  // namespace braid
