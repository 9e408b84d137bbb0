#include "io/file.h"

#include "io/sha256.h"
#include "tests/io/io_support.h"

namespace braid {
namespace {

using testing::expect_error;
using testing::FullDisk;
using testing::TempDir;

TEST(File, WrittenContentIsReadBack) {
  const TempDir dir;
  std::string content(3'000'000, 'x');
  content[1'500'000] = '\0';
  write_file(dir / "a", content);
  EXPECT_EQ(read_file(dir / "a"), content);
  write_file(dir / "a", "");
  EXPECT_EQ(read_file(dir / "a"), "");
  EXPECT_EQ(dir.num_entries(), 1u);
}

TEST(File, PiecesOfEverySizeKeepTheirOrder) {
  const TempDir dir;
  AtomicFile file(dir / "a");
  std::string expected;
  for (int i = 0; i < 40; ++i) {
    const std::string piece(static_cast<size_t>(i) * 7919 * (i % 5), static_cast<char>('a' + i % 26));
    file.write(piece);
    expected += piece;
  }
  file.commit();
  EXPECT_EQ(read_file(dir / "a"), expected);
}

TEST(File, ReadErrorsNamePathAndReason) {
  const TempDir dir;
  expect_error("missing: No such file or directory", [&] { read_file(dir / "missing"); });
  expect_error("Is a directory", [&] { read_file(dir.path()); });
  write_file(dir / "a", "12345");
  expect_error("expected at most 4", [&] { read_file(dir / "a", 4); });
  expect_error("ends before byte 8", [&] {
    char bytes[8];
    InputFile(dir / "a").read_at(0, bytes, 8);
  });
}

TEST(File, WithoutCommitTheOldFileStays) {
  const TempDir dir;
  write_file(dir / "a", "old");
  { AtomicFile(dir / "a").write("new"); }
  EXPECT_EQ(read_file(dir / "a"), "old");
  EXPECT_EQ(dir.num_entries(), 1u);
}

TEST(File, AFullDiskLeavesTheOldFileWhole) {
  const TempDir dir;
  write_file(dir / "a", "old");
  {
    const FullDisk full(100'000);
    expect_error("cannot write " + (dir / "a").string(), [&] { write_file(dir / "a", std::string(5'000'000, 'x')); });
    expect_error("File too large", [&] { write_file(dir / "a", std::string(100'001, 'x')); });
  }
  EXPECT_EQ(read_file(dir / "a"), "old");
  EXPECT_EQ(dir.num_entries(), 1u);
}

TEST(File, DirectoriesThatCannotBeWrittenAreErrors) {
  const TempDir dir;
  write_file(dir / "plain", "x");
  expect_error("Not a directory", [&] { write_file(dir / "plain" / "a", "x"); });
  expect_error("No such file", [&] { write_file(dir / "gone" / "a", "x"); });
  expect_error("Is a directory", [&] { write_file(dir.path(), "x"); });
  expect_error("does not name a file", [&] { write_file("", "x"); });
  expect_error("not a regular file", [&] { write_file("/dev/null", "x"); });
  expect_error("cannot write /proc/none", [&] { write_file("/proc/none", "x"); });
  expect_error("cannot make directory", [&] { make_directories(dir / "plain" / "a"); });
  expect_error("cannot make directory", [&] { make_directories(dir / "plain"); });
}

TEST(File, ADirectoryThatVanishesIsAnError) {
  const TempDir dir;
  make_directories(dir / "sub");
  AtomicFile file(dir / "sub" / "a");
  file.write("x");
  remove_path(dir / "sub");
  expect_error("No such file", [&] { file.commit(); });
}

TEST(File, ADirectoryAppearsWholeOrNotAtAll) {
  const TempDir dir;
  {
    AtomicDirectory made(dir / "step");
    write_file(made.temporary() / "a", "1");
    EXPECT_TRUE(is_temporary_name(made.temporary().filename().string()));
    EXPECT_FALSE(std::filesystem::exists(dir / "step"));
  }
  EXPECT_EQ(dir.num_entries(), 0u);
  AtomicDirectory made(dir / "step");
  write_file(made.temporary() / "a", "1");
  made.commit();
  EXPECT_EQ(read_file(dir / "step" / "a"), "1");
  EXPECT_EQ(dir.num_entries(), 1u);
  expect_error("File exists", [&] { AtomicDirectory(dir / "step"); });
}

TEST(File, AMappedFileIsNeverChanged) {
  const TempDir dir;
  write_file(dir / "a", "abc");
  {
    const MappedFile mapped(dir / "a");
    ASSERT_EQ(mapped.size_bytes(), 3);
    mapped.data()[0] = std::byte{'X'};
  }
  EXPECT_EQ(read_file(dir / "a"), "abc");
  write_file(dir / "empty", "");
  EXPECT_EQ(MappedFile(dir / "empty").size_bytes(), 0);
}

// Examples of FIPS 180-4's test vectors (NIST CAVP).
TEST(Sha256, KnownDigests) {
  EXPECT_EQ(sha256_of(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(sha256_of("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(sha256_of("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(sha256_of(std::string(1'000'000, 'a')), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(Sha256, TheProcessorsInstructionsGiveTheDefinition) {
  std::vector<uint8_t> bytes(64 * 9 + 3);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(i * 2654435761U >> 13);
  for (const int64_t count : {0, 1, 2, 9}) {
    detail::Sha256State fast = {1, 2, 3, 4, 5, 6, 7, 0x80000000U}, portable = fast;
    detail::sha256_blocks(fast, bytes.data() + 3, count);  // at an odd address
    detail::sha256_blocks_portable(portable, bytes.data() + 3, count);
    EXPECT_EQ(fast, portable) << count << " blocks";
  }
}

TEST(Sha256, PiecesMakeNoDifference) {
  const TempDir dir;
  std::string text;
  for (int i = 0; i < 300; ++i) text += static_cast<char>(i * 37);
  for (size_t cut = 0; cut <= text.size(); cut += 7) {
    Sha256 digest;
    digest.update(text.data(), static_cast<int64_t>(cut));
    static_cast<void>(digest.hex());
    digest.update(text.data() + cut, static_cast<int64_t>(text.size() - cut));
    ASSERT_EQ(digest.hex(), sha256_of(text));
  }
  write_file(dir / "a", text);
  EXPECT_EQ(sha256_of_file(dir / "a"), sha256_of(text));
}

}  // namespace
}  // namespace braid
