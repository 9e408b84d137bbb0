#include "io/hdf5.h"

#include <cstring>

#include "tests/io/io_support.h"

namespace braid {
namespace {

using testing::expect_error;
using testing::FullDisk;
using testing::message_of;
using testing::overwrite;
using testing::TempDir;

TEST(Hdf5, AttributesRoundTrip) {
  const TempDir dir;
  Hdf5File file = Hdf5File::create(dir / "a.h5");
  file.set_attribute<int64_t>("i", -5);
  file.set_attribute("d", 0.25);
  file.set_attribute("s", std::string("one"));
  file.set_attribute("s", std::string(""));
  file.create_group("g/h").set_attribute("s", std::string(5000, 'x'));
  file.close();
  const Hdf5File read = Hdf5File::open(dir / "a.h5");
  EXPECT_EQ(read.attribute<int64_t>("i"), -5);
  EXPECT_EQ(read.attribute<double>("d"), 0.25);
  EXPECT_EQ(read.attribute<std::string>("s"), "");
  EXPECT_EQ(read.group("g").group("h").attribute<std::string>("s"), std::string(5000, 'x'));
  EXPECT_FALSE(read.has_attribute("none"));
  EXPECT_EQ(read.names(), std::vector<std::string>{"g"});
  expect_error("attribute none is missing", [&] { read.attribute<int64_t>("none"); });
  expect_error("must be a text", [&] { read.attribute<std::string>("i"); });
  expect_error("must be an integer", [&] { read.attribute<int64_t>("d"); });
  expect_error("there is no group x", [&] { read.group("x"); });
  expect_error("there is no dataset x/y", [&] { read.dataset("x/y"); });
  expect_error("a.h5: g", [&] { read.dataset("g"); });
}

TEST(Hdf5, ListsGrowAndAreReadInPieces) {
  const TempDir dir;
  Hdf5File file = Hdf5File::create(dir / "a.h5");
  Hdf5Dataset list = file.create_growing<uint16_t>("list", 100, 4);
  std::vector<uint16_t> values(1000);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<uint16_t>(i * 97);
  for (int64_t begin = 0, count = 1; begin < 1000; begin += count, count = std::min<int64_t>(count * 2, 1000 - begin))
    list.append(values.data() + begin, count);
  file.close();
  const Hdf5Dataset read = Hdf5File::open(dir / "a.h5").dataset("list");
  ASSERT_EQ(read.size(), 1000);
  EXPECT_EQ(read.type_name(), "u16");
  for (const int64_t begin : {0, 1, 99, 100, 950}) {
    std::vector<int64_t> piece(50);
    read.read(begin, 50, piece.data());
    EXPECT_TRUE(std::equal(piece.begin(), piece.end(), values.begin() + begin));
  }
  std::vector<int64_t> piece(1001);
  expect_error("lie outside its 1000", [&] { read.read(1, 1000, piece.data()); });
  expect_error("lie outside", [&] { read.read(-1, 1, piece.data()); });
  expect_error("lie outside", [&] { read.read(INT64_MAX, 1, piece.data()); });
  double number = 0;
  expect_error("expected floating numbers, got u16", [&] { read.read(0, 1, &number); });
}

TEST(Hdf5, TensorsOfEveryDTypeAndRankRoundTrip) {
  Context ctx;
  const TempDir dir;
  Hdf5File file = Hdf5File::create(dir / "a.h5");
  std::vector<std::pair<std::string, Tensor>> tensors;
  for (DType dtype : {DType::f64, DType::f32, DType::bf16, DType::f16, DType::i64, DType::i32, DType::u16, DType::u8})
    for (const Shape& shape : {Shape{}, Shape{7}, Shape{2, 0}, Shape{3, 700, 5}, Shape{2, 1, 2, 1, 2, 2}}) {
      Tensor tensor = Tensor::empty(ctx, shape, dtype);
      for (int64_t i = 0; i < tensor.nbytes(); ++i) tensor.raw()[i] = static_cast<std::byte>((i * 7919) >> 3);
      tensors.emplace_back("p/" + std::string(to_string(dtype)) + "/r" + std::to_string(shape.rank()), tensor);
      file.write_tensor(ctx, tensors.back().first, tensor);
    }
  file.close();
  const Hdf5File read = Hdf5File::open(dir / "a.h5");
  for (const auto& [name, tensor] : tensors) {
    const Tensor back = read.read_tensor(ctx, name);
    ASSERT_EQ(back.dtype(), tensor.dtype()) << name;
    ASSERT_EQ(back.shape(), tensor.shape()) << name;
    EXPECT_TRUE(tensor.nbytes() == 0 || std::memcmp(back.raw(), tensor.raw(), static_cast<size_t>(tensor.nbytes())) == 0) << name;
  }
  expect_error("expected f32 [3], got f64 [7]", [&] { read.read_tensor_into(ctx, "p/f64/r1", Tensor::empty(ctx, {3}, DType::f32)); });
}

TEST(Hdf5, MissingGarbageAndTruncatedFilesAreErrors) {
  const TempDir dir;
  expect_error("none.h5: No such file", [&] { Hdf5File::open(dir / "none.h5"); });
  expect_error("Is a directory", [&] { Hdf5File::open(dir.path()); });
  for (const std::string& garbage : {std::string(), std::string("x"), std::string(5000, 'x')}) {
    overwrite(dir / "bad.h5", garbage);
    expect_error("bad.h5: cannot be read as HDF5", [&] { Hdf5File::open(dir / "bad.h5"); });
  }
  expect_error("cannot write", [&] { Hdf5File::create(dir / "none" / "a.h5"); });
}

TEST(Hdf5, AFullDiskIsAnErrorAtEverySizeAndTheLibraryGoesOn) {
  Context ctx;
  const TempDir dir;
  const Tensor tensor = Tensor::zeros(ctx, {100, 1000}, DType::f32);
  for (int64_t room = 0; room < 400'000; room += 9973) {
    const FullDisk full(room);
    expect_error("File too large", [&] {
      Hdf5File file = Hdf5File::create(dir / "a.h5");
      Hdf5Dataset list = file.create_growing<int64_t>("list", 512, 0);
      const std::vector<int64_t> values(2000, 3);
      list.append(values.data(), 2000);
      file.write_tensor(ctx, "t", tensor);
      file.close();
    });
  }
  Hdf5File file = Hdf5File::create(dir / "a.h5");
  file.write_tensor(ctx, "t", tensor);
  file.close();
  EXPECT_EQ(Hdf5File::open(dir / "a.h5").read_tensor(ctx, "t").shape(), (Shape{100, 1000}));
}

}  // namespace
}  // namespace braid
