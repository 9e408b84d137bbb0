#include "io/safetensors.h"

#include <cstring>

#include "tests/io/io_support.h"

namespace braid {
namespace {

using testing::expect_error;
using testing::FullDisk;
using testing::message_of;
using testing::overwrite;
using testing::TempDir;

std::string file_of(const std::string& header, const std::string& data, uint64_t claimed = 0) {
  const uint64_t length = claimed ? claimed : header.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + header + data;
}

/// Opens a file of these bytes.
Safetensors opened(const TempDir& dir, const std::string& bytes) {
  overwrite(dir / "t.safetensors", bytes);
  return Safetensors(dir / "t.safetensors");
}

void expect_refused(const std::string& part, const std::string& header, const std::string& data, uint64_t claimed = 0) {
  const TempDir dir;
  expect_error(part, [&] { opened(dir, file_of(header, data, claimed)); });
  const std::string message = message_of([&] { opened(dir, file_of(header, data, claimed)); });
  EXPECT_TRUE(message.starts_with((dir / "t.safetensors").string())) << message;
}

Tensor bytes_as(Context& ctx, const Shape& shape, DType dtype) {
  Tensor tensor = Tensor::empty(ctx, shape, dtype);
  for (int64_t i = 0; i < tensor.nbytes(); ++i) tensor.raw()[i] = static_cast<std::byte>(i * 31 + 7);
  return tensor;
}

TEST(Safetensors, EveryDTypeAndRankRoundTrips) {
  Context ctx;
  const TempDir dir;
  std::vector<NamedTensor> tensors;
  for (DType dtype : {DType::u8, DType::u16, DType::i32, DType::i64, DType::f16, DType::bf16, DType::f32, DType::f64})
    for (const Shape& shape : {Shape{}, Shape{3}, Shape{2, 0, 4}, Shape{1, 2, 3, 1, 2, 3}})
      tensors.push_back({std::string(to_string(dtype)) + std::to_string(shape.rank()), bytes_as(ctx, shape, dtype)});
  const std::map<std::string, std::string> metadata = {{"op", "attention"}, {"note", "line\n\"quoted\" \xc3\xa9"}};
  write_safetensors(ctx, dir / "a.safetensors", tensors, metadata);
  const Safetensors file(dir / "a.safetensors");
  EXPECT_EQ(file.metadata(), metadata);
  ASSERT_EQ(file.entries().size(), tensors.size());
  for (const NamedTensor& named : tensors) {
    const Tensor read = file.get(named.name);
    ASSERT_EQ(read.dtype(), named.tensor.dtype());
    ASSERT_EQ(read.shape(), named.tensor.shape());
    EXPECT_TRUE(read.nbytes() == 0 || std::memcmp(read.raw(), named.tensor.raw(), static_cast<size_t>(read.nbytes())) == 0) << named.name;
  }
  EXPECT_EQ(file.entries().front().dtype, DType::i64);  // largest elements first, so that all are aligned
  EXPECT_EQ(file.get("f321").storage(), file.get("f641").storage()) << "not a copy";
}

TEST(Safetensors, AFileWithoutTensorsAndAStridedTensor) {
  Context ctx;
  const TempDir dir;
  write_safetensors(ctx, dir / "none", {});
  EXPECT_TRUE(Safetensors(dir / "none").entries().empty());
  const Tensor whole = from_vector<float>(ctx, {1, 2, 3, 4}, {2, 2});
  write_safetensors(ctx, dir / "column", {{"c", whole.slice(1, 1, 2)}});
  EXPECT_EQ(to_vector<float>(ctx, Safetensors(dir / "column").get("c")), (std::vector<float>{2, 4}));
}

TEST(Safetensors, ATensorOutlivesItsFileAndNeverChangesIt) {
  Context ctx;
  const TempDir dir;
  write_safetensors(ctx, dir / "a", {{"x", from_vector<float>(ctx, {1, 2}, {2})}});
  const Tensor x = Safetensors(dir / "a").get("x");
  remove_path(dir / "b");
  x.data<float>()[0] = 9;
  EXPECT_EQ(to_vector<float>(ctx, Safetensors(dir / "a").get("x")), (std::vector<float>{1, 2}));
}

TEST(Safetensors, UnalignedDataAreCopied) {
  Context ctx;
  const TempDir dir;
  const float value = 2.5f;
  const std::string header = R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}})";
  const Safetensors file = opened(dir, file_of(header, "x" + std::string(reinterpret_cast<const char*>(&value), 4)));
  EXPECT_EQ(item(ctx, file.get("b")), 2.5);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(file.get("b").raw()) % 4, 0u);
}

TEST(Safetensors, TypesBraidDoesNotComputeWithAreListedAndRefusedWhenAskedFor) {
  const TempDir dir;
  const Safetensors file = opened(dir, file_of(R"({"m":{"dtype":"BOOL","shape":[2],"data_offsets":[0,2]}})", "ab"));
  EXPECT_FALSE(file.entries()[0].dtype);
  expect_error("BOOL", [&] { file.get("m"); });
  expect_error("there is no tensor \"none\"", [&] { file.get("none"); });
  EXPECT_FALSE(file.get_if("none").defined());
}

TEST(Safetensors, HostileLengths) {
  const TempDir dir;
  expect_error("it has 0 bytes", [&] { opened(dir, ""); });
  expect_error("it has 7 bytes", [&] { opened(dir, "1234567"); });
  expect_refused("claims 1152921504606846976 bytes", "{}", "", uint64_t{1} << 60);
  expect_refused("claims 18446744073709551615 bytes", "{}", "", UINT64_MAX);
  expect_refused("claims 3 bytes", "{}", "", 3);
  expect_error("No such file", [&] { Safetensors(dir / "none"); });
  write_file(dir / "big", file_of("{}", "", 100'000'001));
  std::filesystem::resize_file(dir / "big", 100'000'100);  // a hole: takes no room
  expect_error("expected at most 100000000", [&] { Safetensors(dir / "big"); });
}

TEST(Safetensors, HostileJson) {
  expect_refused("not a JSON object", "", "");
  expect_refused("not a JSON object", "[]", "");
  expect_refused("not valid JSON", "{", "");
  expect_refused("not valid JSON", "{}x", "");
  expect_refused("not valid JSON", R"({"a":{"dtype":"F32","shape":[1e999],"data_offsets":[0,4]}})", "1234");
  expect_refused("not valid JSON", "{\"\xff\":1}", "");
  expect_refused("the header holds a list", std::string("{\"a\":") + std::string(1'000'000, '['), "");
  std::string objects = "{";
  for (int i = 0; i < 100'000; ++i) objects += "\"a\":{";
  expect_refused("unknown key \"a\"", objects, "");
  expect_refused("the header holds a list", R"({"a":{"dtype":"F32","shape":[[1]],"data_offsets":[0,4]}})", "1234");
  expect_refused("the header holds a number", R"({"a":1})", "");
  expect_refused("the header holds null", R"({"a":null})", "");
  expect_refused("the header holds a number", R"({"__metadata__":{"a":1}})", "");
  expect_refused("the header holds a string", R"({"__metadata__":"a"})", "");
  expect_refused("is repeated", R"({"__metadata__":{"a":"1","a":"2"}})", "");
  expect_refused("unknown key \"x\"", R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}})", "1234");
  expect_refused("must have dtype, shape and data_offsets", R"({"a":{"dtype":"F32","shape":[1]}})", "1234");
  expect_refused("repeats shape", R"({"a":{"dtype":"F32","shape":[1],"shape":[1],"data_offsets":[0,4]}})", "1234");
}

TEST(Safetensors, HostileTensors) {
  const auto one = [](const std::string& dtype, const std::string& shape, const std::string& offsets) {
    return "{\"a\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape + ",\"data_offsets\":" + offsets + "}}";
  };
  expect_refused("unknown dtype \"F31\"", one("F31", "[1]", "[0,4]"), "1234");
  expect_refused("negative number in its shape: -1", one("F32", "[-1]", "[0,4]"), "1234");
  expect_refused("negative number in its data_offsets", one("F32", "[1]", "[-4,0]"), "1234");
  expect_refused("more elements than can be counted", one("F32", "[4611686018427387904,4611686018427387904]", "[0,4]"), "1234");
  expect_refused("a dimension of 18446744073709551615", one("F32", "[18446744073709551615]", "[0,4]"), "1234");
  expect_refused("a number with a fraction", one("F32", "[1.0]", "[0,4]"), "1234");
  expect_refused("more than 6 dimensions", one("F32", "[1,1,1,1,1,1,1]", "[0,4]"), "1234");
  expect_refused("must have 8 bytes, data_offsets give 4", one("F32", "[2]", "[0,4]"), "1234");
  expect_refused("two data_offsets", one("F32", "[1]", "[0,4,4]"), "1234");
  expect_refused("two data_offsets", one("F32", "[1]", "[4]"), "1234");
  expect_refused("do not fall", one("F32", "[1]", "[4,0]"), "1234");
  expect_refused("ends at byte 4 of 3 bytes", one("F32", "[1]", "[0,4]"), "123");
  expect_refused("ends at byte 9223372036854775807", one("U8", "[9223372036854775807]", "[0,9223372036854775807]"), "1");
  expect_refused("its tensors 4", one("F32", "[1]", "[0,4]"), "12345");
  expect_refused("belong to no tensor", one("F32", "[1]", "[4,8]"), "12345678");
}

TEST(Safetensors, HostileRangesOfSeveralTensors) {
  const auto two = [](const std::string& name, const std::string& first, const std::string& second) {
    return "{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":" + first + "},\"" + name +
           "\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":" + second + "}}";
  };
  expect_refused("the name \"a\" is repeated", two("a", "[0,4]", "[4,8]"), "12345678");
  expect_refused("overlaps another", two("b", "[0,4]", "[2,6]"), "12345678");
  expect_refused("overlaps another", two("b", "[0,4]", "[0,4]"), "1234");
  expect_refused("bytes 4 to 5 of the data belong to no tensor", two("b", "[0,4]", "[5,9]"), "123456789");
  const TempDir dir;
  EXPECT_EQ(opened(dir, file_of(two("b", "[4,8]", "[0,4]"), "12345678")).entries()[0].name, "b") << "order of the data";
}

/// What a reader does with a file: every tensor is made and its bytes are touched.
int64_t read_all(const Path& path) {
  const Safetensors file(path);
  int64_t sum = 0;
  for (const auto& entry : file.entries()) {
    if (!entry.dtype) continue;
    const Tensor tensor = file.get(entry.name);
    for (int64_t i = 0; i < tensor.nbytes(); ++i) sum += static_cast<int64_t>(tensor.raw()[i]);
  }
  return sum;
}

TEST(Safetensors, EveryTruncationIsAnErrorAndNoBitFlipCrashes) {
  Context ctx;
  const TempDir dir;
  write_safetensors(ctx, dir / "a", {{"x", bytes_as(ctx, {3}, DType::f32)}, {"y", bytes_as(ctx, {5}, DType::u8)}}, {{"k", "v"}});
  const std::string bytes = read_file(dir / "a");
  for (size_t length = 0; length < bytes.size(); ++length) {
    overwrite(dir / "b", bytes.substr(0, length));
    message_of([&] { read_all(dir / "b"); });
  }
  int errors = 0;
  for (size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
    std::string flipped = bytes;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << (bit % 8)));
    overwrite(dir / "b", flipped);
    try {
      read_all(dir / "b");
    } catch (const Error&) {
      ++errors;
    }
  }
  EXPECT_GT(errors, static_cast<int>(4 * bytes.size())) << "most flips in the header are noticed";
}

TEST(Safetensors, AFailedWriteLeavesTheOldFileWhole) {
  Context ctx;
  const TempDir dir;
  write_file(dir / "a", "old");
  const Tensor big = Tensor::zeros(ctx, {1 << 20}, DType::f32);
  {
    const FullDisk full(1 << 20);
    expect_error("File too large", [&] { write_safetensors(ctx, dir / "a", {{"x", big}}); });
  }
  expect_error("is repeated", [&] { write_safetensors(ctx, dir / "a", {{"x", big}, {"x", big}}); });
  expect_error("is reserved", [&] { write_safetensors(ctx, dir / "a", {{"__metadata__", big}}); });
  expect_error("is undefined", [&] { write_safetensors(ctx, dir / "a", {{"x", Tensor()}}); });
  expect_error("UTF-8", [&] { write_safetensors(ctx, dir / "a", {{"\xff", big}}); });
  EXPECT_EQ(read_file(dir / "a"), "old");
  EXPECT_EQ(dir.num_entries(), 1u);
}

}  // namespace
}  // namespace braid
