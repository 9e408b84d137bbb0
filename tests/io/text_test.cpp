#include "io/text.h"

#include "io/tokenizer.h"
#include "tests/io/io_support.h"

namespace braid {
namespace {

using testing::expect_error;
using testing::overwrite;
using testing::TempDir;

/// All documents; checks that pieces begin and end where they say.
std::vector<std::string> documents_of(TextReader& reader, size_t largest_piece = SIZE_MAX) {
  std::vector<std::string> documents;
  bool open = false;
  for (TextPiece piece; reader.next(piece);) {
    EXPECT_EQ(piece.begins_document, !open);
    EXPECT_LE(piece.text.size(), largest_piece);
    if (piece.begins_document) documents.emplace_back();
    documents.back() += piece.text;
    open = !piece.ends_document;
  }
  EXPECT_FALSE(open);
  return documents;
}

TEST(Text, AFileIsADocumentInPiecesOfAnySize) {
  const TempDir dir;
  const std::string text = "one two\nthr\xc3\xa9\xc3\xa9 \xe2\x82\xac\xe2\x82\xac\xe2\x82\xac\xe2\x82\xac four\n\nfive" + std::string(30, 'x') +
                           "\xff\x80\x80\x80\x80\x80\x80";
  overwrite(dir / "a.txt", text);
  overwrite(dir / "empty.txt", "");
  for (int64_t size = 4; size < 100; ++size) {
    TextReader reader({dir / "a.txt", dir / "empty.txt", dir / "a.txt"}, {.piece_bytes = size});
    EXPECT_EQ(documents_of(reader, static_cast<size_t>(size)), (std::vector<std::string>{text, "", text}));
    EXPECT_EQ(reader.bytes_read(), reader.bytes_total());
  }
}

TEST(Text, PiecesEndAtLinesThenBlanksThenCharacters) {
  const TempDir dir;
  overwrite(dir / "a.txt", "ab\ncd ef \xe2\x82\xac\xe2\x82\xac\xe2\x82\xac");
  TextReader reader({dir / "a.txt"}, {.piece_bytes = 5});
  std::vector<std::string> pieces;
  for (TextPiece piece; reader.next(piece);) pieces.emplace_back(piece.text);
  EXPECT_EQ(pieces, (std::vector<std::string>{"ab\n", "cd ", "ef ", "\xe2\x82\xac", "\xe2\x82\xac", "\xe2\x82\xac"}));
}

TEST(Text, JsonLinesGiveADocumentEach) {
  const TempDir dir;
  const std::string large(300'000, 'y');
  overwrite(dir / "a.jsonl", "{\"text\":\"one\\n\"}\r\n\n  \n{\"id\":1,\"text\":\"" + large + "\"}\n{\"text\":\"\"}");
  TextReader reader({dir / "a.jsonl", dir / "a.jsonl"});
  EXPECT_EQ(documents_of(reader), (std::vector<std::string>{"one\n", large, "", "one\n", large, ""}));
  TextReader plain({dir / "a.jsonl"}, {.format = TextOptions::Format::plain});
  EXPECT_EQ(documents_of(plain).size(), 1u);
}

TEST(Text, AWrongLineIsNamed) {
  const TempDir dir;
  const auto refused = [&](const std::string& part, const std::string& line) {
    overwrite(dir / "a.jsonl", "{\"text\":\"fine\"}\n\n" + line + "\n");
    expect_error("a.jsonl:3: " + part, [&] {
      TextReader reader({dir / "a.jsonl"}, {.line_bytes = 1 << 17});
      documents_of(reader);
    });
  };
  refused("not valid JSON", "{\"text\":");
  refused("not valid JSON", "{\"text\":\"\xff\"}");
  refused("expected an object", "[1]");
  refused("text is missing", "{\"txt\":\"a\"}");
  refused("text must be a string, got 3", "{\"text\":3}");
  refused("JSON is nested deeper", std::string(1000, '['));
  refused("the line is longer than 131072 bytes", std::string(400'000, 'x'));
  expect_error("none: No such file", [&] { TextReader reader({dir / "none"}); });
}

TEST(Tokenizer, BytesRoundTrip) {
  const auto tokenizer = make_tokenizer("bytes");
  EXPECT_EQ(tokenizer->name(), "bytes");
  EXPECT_EQ(tokenizer->vocab_size(), 256);
  std::string all;
  for (int i = 0; i < 256; ++i) all += static_cast<char>(i);
  const std::vector<int64_t> tokens = tokenizer->encode(all);
  for (int i = 0; i < 256; ++i) EXPECT_EQ(tokens[i], i);
  EXPECT_EQ(tokenizer->decode(tokens), all);
  expect_error("in [0, 256), got 256", [&] { tokenizer->decode({256}); });
  expect_error("SentencePiece models are not supported yet", [] { make_tokenizer("some.model"); });
}

}  // namespace
}  // namespace braid
