// The fuzz targets over a few thousand mutants of valid files, the same ones each time.
#include <gtest/gtest.h>

#include "core/random.h"
#include "tests/fuzz/targets.h"
#include "tests/io/io_support.h"

// The HDF5 library forgets some of its own memory when it refuses a damaged file.
extern "C" const char* __lsan_default_suppressions() { return "leak:libhdf5"; }

namespace braid {
namespace {

using testing::TempDir;

/// One small change of the kind that has broken parsers before.
void mutate_once(std::string& bytes, Random& random) {
  static const std::string kPieces[] = {"[",
                                        "{",
                                        "\"",
                                        "-1",
                                        "1e999",
                                        "9223372036854775808",
                                        "null",
                                        std::string(8, '\xff'),
                                        std::string(8, '\0'),
                                        std::string("\0\0\0\0\0\0\0\x10", 8),
                                        "\\ud800",
                                        "\xc3\x28"};
  const size_t place = static_cast<size_t>(random.below(bytes.size() + 1));
  const std::string& piece = kPieces[random.below(std::size(kPieces))];
  const size_t length = static_cast<size_t>(random.below(32));
  switch (random.below(7)) {
    case 0:
      bytes.insert(place, piece);
      break;
    case 1:
      bytes.replace(place, piece.size(), piece);
      break;
    case 2:
      bytes.erase(place, length);
      break;
    case 3:
      bytes.resize(place);
      break;
    case 4:
      bytes.insert(place, bytes.substr(place / 2, length));
      break;
    default:
      if (place < bytes.size()) bytes[place] = static_cast<char>(bytes[place] ^ (1 << random.below(8)));
  }
}

template <class Target>
void try_mutants(const std::string& valid, int count, Target target) {
  ASSERT_TRUE(target(valid));
  Random random(20260101);
  int refused = 0;
  for (int i = 0; i < count; ++i) {
    std::string bytes = valid;
    for (uint64_t changes = 1 + random.below(4); changes > 0; --changes) mutate_once(bytes, random);
    refused += !target(bytes);
  }
  EXPECT_GT(refused, count / 4);
}

TEST(Fuzz, Safetensors) {
  Context ctx;
  const TempDir dir;
  write_safetensors(ctx, dir / "a", {{"x", Tensor::zeros(ctx, {2, 3}, DType::f32)}, {"y", Tensor::zeros(ctx, {3}, DType::u8)}},
                    {{"op", "attention"}});
  try_mutants(read_file(dir / "a"), 4000, fuzz::read_safetensors);
}

TEST(Fuzz, JsonConfig) {
  const std::string valid =
      R"({"model_type":"gated_deltanet","hidden_size":64,"norm_eps":1e-6,"tie_word_embeddings":true,"layers":[1,3],"attn":{"window":null}})";
  try_mutants(valid, 4000, fuzz::read_config);
}

TEST(Fuzz, TokenDataset) {
  const TempDir dir;
  TokenDatasetWriter writer(dir / "a", 256, "bytes");
  for (int64_t i = 0; i < 20; ++i) writer.add_document(std::vector<int64_t>(static_cast<size_t>(i), i));
  writer.close();
  try_mutants(read_file(dir / "a"), 2000, fuzz::read_token_dataset);
}

}  // namespace
}  // namespace braid
