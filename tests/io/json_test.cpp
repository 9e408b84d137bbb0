#include "io/json.h"

#include "tests/io/io_support.h"

namespace braid {
namespace {

using testing::expect_error;
using testing::TempDir;

TEST(Json, FilesRoundTrip) {
  const TempDir dir;
  const Json value = {{"a", 1}, {"b", {1.5, "x", nullptr, true}}};
  write_json(dir / "a.json", value);
  EXPECT_EQ(read_json(dir / "a.json"), value);
  expect_error("No such file", [&] { read_json(dir / "none"); });
  write_file(dir / "bad", "{\n\"a\": }");
  expect_error((dir / "bad").string() + ": not valid JSON", [&] { read_json(dir / "bad"); });
  expect_error("line 2", [&] { read_json(dir / "bad"); });
}

TEST(Json, HostileTextIsAnError) {
  expect_error("nested deeper than 64", [] { parse_json("x", std::string(1'000'000, '[')); });
  expect_error("nested deeper than 64", [] { parse_json("x", std::string(65, '[') + std::string(65, ']')); });
  EXPECT_NO_THROW(parse_json("x", std::string(64, '[') + std::string(64, ']')));
  expect_error("\"a\\nb\" is repeated", [] { parse_json("x", R"({"a\nb":1,"a\nb":2})"); });
  EXPECT_NO_THROW(parse_json("x", R"([{"a":{"a":1}},{"a":2}])"));
  expect_error("not valid JSON", [] { parse_json("x", ""); });
  expect_error("not valid JSON", [] { parse_json("x", "\"\xff\""); });
  expect_error("not valid JSON", [] { parse_json("x", "1e999"); });
}

TEST(Json, GettersCheckTypes) {
  const Json object = parse_json("c", R"({"i":8,"d":0.5,"s":"x","b":true,"l":[1,2],"t":["a"],"n":null,"big":18446744073709551615})");
  EXPECT_EQ(required<int64_t>("c", object, "i"), 8);
  EXPECT_EQ(required<double>("c", object, "i"), 8.0);
  EXPECT_EQ(required<double>("c", object, "d"), 0.5);
  EXPECT_EQ(required<std::string>("c", object, "s"), "x");
  EXPECT_TRUE(required<bool>("c", object, "b"));
  EXPECT_EQ(required<std::vector<int64_t>>("c", object, "l"), (std::vector<int64_t>{1, 2}));
  EXPECT_EQ(required<std::vector<std::string>>("c", object, "t"), (std::vector<std::string>{"a"}));
  EXPECT_EQ(value_or<int64_t>("c", object, "n", 3), 3);
  EXPECT_EQ(value_or<int64_t>("c", object, "none", 4), 4);
  expect_error("c: hidden is missing; expected an integer", [&] { required<int64_t>("c", object, "hidden"); });
  expect_error("c: s must be an integer, got \"x\"", [&] { required<int64_t>("c", object, "s"); });
  expect_error("c: d must be an integer, got 0.5", [&] { value_or<int64_t>("c", object, "d", 1); });
  expect_error("must be an integer", [&] { required<int64_t>("c", object, "big"); });
  expect_error("must be a list of integers, got [\"a\"]", [&] { required<std::vector<int64_t>>("c", object, "t"); });
  expect_error("must be true or false, got 8", [&] { required<bool>("c", object, "i"); });
  expect_error("expected an object", [&] { value_or<int64_t>("c", Json(3), "i", 1); });
}

}  // namespace
}  // namespace braid
