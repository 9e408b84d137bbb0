// What the end-to-end tests share.
#pragma once
#include <gtest/gtest.h>

#include <algorithm>

#include "io/json.h"
#include "tests/support/program.h"

namespace braid::test {

using Words = std::vector<std::string>;

inline ProgramResult braid_program(const Words& words, const Workspace& space) { return run(BRAID_PROGRAM, words, space); }

inline void expect_done(const ProgramResult& result) { EXPECT_EQ(result.status, 0) << result.out << result.err; }

/// Exit status 2, exactly one line on stderr that contains `named`, and the directory as it was.
inline void expect_refused(const Words& words, const Workspace& space, const std::string& named) {
  const auto before = space.listing();
  const ProgramResult result = braid_program(words, space);
  EXPECT_EQ(result.status, 2) << words[0] << ": " << result.out << result.err;
  EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
  EXPECT_NE(result.err.find(named), std::string::npos) << "expected \"" << named << "\" in: " << result.err;
  EXPECT_EQ(space.listing(), before) << words[0] << " wrote something";
}

inline std::string data_path(const std::string& name) { return std::string(BRAID_SOURCE_DIR) + "/tests/data/" + name; }

/// A text that a tiny model can learn from, as d.h5 in `space`.
inline void make_data(const Workspace& space) {
  std::string text;
  for (int i = 0; i < 400; ++i) text += "the number " + std::to_string(i) + " comes before " + std::to_string(i + 1) + ".\n";
  space.write("text.txt", text);
  expect_done(braid_program({"tokenize", "--input", "text.txt", "--out", "d.h5"}, space));
}

inline Words train_words(const std::string& out, const Words& more = {}) {
  Words words = {"train", "--model", "tiny-gdn-3-1", "--data", "d.h5", "--out", out, "--steps", "6", "--batch-tokens", "128", "--context", "64"};
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

}  // namespace braid::test
