#include "io/token_dataset.h"

#include "tests/io/io_support.h"

namespace braid {
namespace {

using testing::expect_error;
using testing::FullDisk;
using testing::message_of;
using testing::overwrite;
using testing::TempDir;

int64_t token_at(int64_t i, int64_t vocab_size) { return static_cast<int64_t>((static_cast<uint64_t>(i) * 2654435761u >> 7) % vocab_size); }

/// Documents of 0, 1000, 2000, … tokens until there are `num_tokens`.
void write_dataset(const Path& path, int64_t num_tokens, int64_t vocab_size) {
  TokenDatasetWriter writer(path, vocab_size, "bytes");
  for (int64_t length = 0; writer.num_tokens() < num_tokens; length += 1000) {
    std::vector<int64_t> document;
    for (int64_t i = 0; i < length && writer.num_tokens() + i < num_tokens; ++i) document.push_back(token_at(writer.num_tokens() + i, vocab_size));
    writer.add_document(document);
  }
  writer.close();
}

TEST(TokenDataset, TokensAndDocumentsRoundTripInBothWidths) {
  const TempDir dir;
  for (const int64_t vocab_size : {256, 65536, 65537, 1 << 20}) {
    const Path path = dir / ("a" + std::to_string(vocab_size));
    write_dataset(path, 100'000, vocab_size);
    const TokenDataset data(path);
    ASSERT_EQ(data.num_tokens(), 100'000);
    EXPECT_EQ(data.vocab_size(), vocab_size);
    EXPECT_EQ(data.tokenizer(), "bytes");
    EXPECT_EQ(Hdf5File::open(path).dataset("tokens").type_name(), vocab_size <= 65536 ? "u16" : "u32");
    for (const int64_t begin : {0, 32767, 32768, 99'000, 5, 60'000}) {
      const std::vector<int64_t> tokens = data.read(begin, 1000);
      for (int64_t i = 0; i < 1000; ++i) ASSERT_EQ(tokens[i], token_at(begin + i, vocab_size));
    }
    EXPECT_EQ(data.read(0, 100'000).size(), 100'000u);
    EXPECT_EQ(data.document_end(0), 0);
    EXPECT_EQ(data.document_begin(3), 3000);
    EXPECT_EQ(data.document_end(3), 6000);
    EXPECT_EQ(data.document_of(0), 1);
    EXPECT_EQ(data.document_of(5999), 3);
    EXPECT_EQ(data.document_of(6000), 4);
    EXPECT_EQ(data.document_end(data.num_documents() - 1), 100'000);
    data.verify();
    expect_error("lie outside its 100000", [&] { data.read(99'001, 1000); });
    expect_error("lie outside", [&] { data.read(1, INT64_MAX); });
    expect_error("lies outside", [&] { data.document_begin(data.num_documents()); });
  }
}

TEST(TokenDataset, TheDigestIsThatOfTheTokenBytes) {
  const TempDir dir;
  TokenDatasetWriter writer(dir / "a", 256, "bytes");
  writer.add_document({'a', 'b'});
  writer.close();
  EXPECT_EQ(TokenDataset(dir / "a").sha256(), sha256_of(std::string("a\0b\0", 4)));
}

TEST(TokenDataset, TheWriterRefusesWhatCannotBeRead) {
  const TempDir dir;
  expect_error("vocab_size", [&] { TokenDatasetWriter(dir / "a", 0, "bytes"); });
  TokenDatasetWriter writer(dir / "a", 256, "bytes");
  const int64_t token = 256, negative = -1;
  expect_error("begin_document", [&] { writer.append(&token, 1); });
  writer.begin_document();
  expect_error("in [0, 256), got 256", [&] { writer.append(&token, 1); });
  expect_error("got -1", [&] { writer.append(&negative, 1); });
  expect_error("no token", [&] { writer.close(); });
  expect_error("No such file", [&] { TokenDatasetWriter(dir / "none" / "a", 256, "bytes"); });
}

TEST(TokenDataset, NothingIsLeftWithoutCloseOrOnAFullDisk) {
  const TempDir dir;
  { TokenDatasetWriter(dir / "a", 256, "bytes").add_document({1, 2, 3}); }
  EXPECT_EQ(dir.num_entries(), 0u);
  write_dataset(dir / "a", 5000, 256);
  const std::string before = read_file(dir / "a");
  for (const int64_t room : {0, 1000, 3000, 20'000, 100'000}) {
    const FullDisk full(room);
    expect_error("cannot write " + (dir / "a").string() + ": File too large", [&] { write_dataset(dir / "a", 400'000, 60000); });
  }
  EXPECT_EQ(read_file(dir / "a"), before);
  EXPECT_EQ(dir.num_entries(), 1u);
}

struct Parts {
  bool vocab = true, tokenizer = true, sha256 = true, tokens = true, documents = true;
  std::vector<uint16_t> values = {1, 2, 3, 4};
  std::vector<uint64_t> starts = {0, 2};
  int64_t vocab_size = 256;
};

void write_parts(const Path& path, const Parts& parts) {
  Hdf5File file = Hdf5File::create(path);
  if (parts.vocab) file.set_attribute<int64_t>("vocab_size", parts.vocab_size);
  if (parts.tokenizer) file.set_attribute("tokenizer", std::string("bytes"));
  if (parts.sha256) file.set_attribute("sha256", std::string(64, '0'));
  if (parts.tokens) file.create_growing<uint16_t>("tokens", 16, 1).append(parts.values.data(), static_cast<int64_t>(parts.values.size()));
  if (parts.documents) file.create_growing<uint64_t>("documents", 16, 1).append(parts.starts.data(), static_cast<int64_t>(parts.starts.size()));
  file.close();
}

TEST(TokenDataset, EveryMissingOrWrongPartIsNamed) {
  const TempDir dir;
  const auto refused = [&](const std::string& part, const Parts& parts) {
    write_parts(dir / "a", parts);
    expect_error(part, [&] { TokenDataset data(dir / "a"); });
    EXPECT_TRUE(message_of([&] { TokenDataset data(dir / "a"); }).starts_with((dir / "a").string()));
  };
  write_parts(dir / "a", {});
  EXPECT_EQ(TokenDataset(dir / "a").read(1, 3), (std::vector<int64_t>{2, 3, 4}));
  expect_error("SHA-256", [&] { TokenDataset(dir / "a").verify(); });
  refused("vocab_size is missing", {.vocab = false});
  refused("tokenizer is missing", {.tokenizer = false});
  refused("sha256 is missing", {.sha256 = false});
  refused("no dataset tokens", {.tokens = false});
  refused("no dataset documents", {.documents = false});
  refused("vocab_size must be in", {.vocab_size = -1});
  refused("must start at token 0, got 1", {.starts = {1, 2}});
  refused("document 2 must start in [3, 4], got 1", {.starts = {0, 3, 1}});
  refused("document 1 must start in [0, 4], got 5", {.starts = {0, 5}});
  refused("got 9223372036854775807", {.starts = {0, UINT64_MAX}});
  refused("no document", {.starts = {}});
  write_parts(dir / "a", {.values = {1, 300}});
  const TokenDataset data(dir / "a");
  expect_error("token 1 must be below vocab_size 256, got 300", [&] { data.read(0, 2); });
  expect_error("token 1 must be below", [&] { data.read(0, 2); });
}

TEST(TokenDataset, EveryTruncationIsAnErrorAndBitFlipsAreNoticed) {
  const TempDir dir;
  write_dataset(dir / "a", 700, 256);
  const std::string bytes = read_file(dir / "a");
  const auto read_all = [&] {
    const TokenDataset data(dir / "b");
    data.verify();
  };
  for (size_t length = 0; length < bytes.size(); length += length < 600 ? 1 : 13) {
    overwrite(dir / "b", bytes.substr(0, length));
    message_of(read_all);
  }
  int noticed = 0, tried = 0;
  for (size_t i = 0; i < bytes.size(); i += i < 800 ? 1 : 5) {
    std::string flipped = bytes;
    flipped[i] = static_cast<char>(flipped[i] ^ (1 << (i % 8)));
    overwrite(dir / "b", flipped);
    ++tried;
    try {
      read_all();
    } catch (const Error&) {
      ++noticed;
    }
  }
  EXPECT_GT(noticed, tried / 4);
}

}  // namespace
}  // namespace braid
