// Every mistake of a user: one line on stderr, exit status 2, nothing written.
#include "io/safetensors.h"
#include "io/token_dataset.h"
#include "tests/end_to_end/braid_program.h"

namespace braid::test {
namespace {

std::string little_endian(uint64_t value) {
  std::string bytes(8, '\0');
  for (int i = 0; i < 8; ++i) bytes[i] = static_cast<char>(value >> (8 * i));
  return bytes;
}

std::string safetensors(const std::string& header, size_t data_bytes) {
  return little_endian(header.size()) + header + std::string(data_bytes, '\0');
}

TEST(BadInput, OptionsAndNames) {
  const Workspace space;
  make_data(space);
  expect_refused({"frobnicate"}, space, "frobnicate");
  expect_refused({"tokenizer", "--input", "text.txt", "--vocab-size", "100", "--out", "m"}, space, "SentencePiece");
  expect_refused({"train", "--model", "tiny-mamba", "--data", "d.h5", "--out", "RUN"}, space, "tiny-mamba");
  expect_refused({"models", "9T-gdn"}, space, "9T-gdn");
  expect_refused(train_words("RUN", {"--stepz", "3"}), space, "--stepz");
  expect_refused(train_words("RUN", {"--lr"}), space, "--lr");
  expect_refused(train_words("RUN", {"--lr", "fast"}), space, "fast");
  expect_refused(train_words("RUN", {"--seed", "1.5"}), space, "--seed");
  expect_refused(train_words("RUN", {"--accumulate", "9223372036854775807"}), space, "--accumulate");
  expect_refused({"train", "--model", "tiny-gdn", "--data", "d.h5", "--out", "RUN", "--context", "9223372036854775807"}, space, "--context");
  expect_refused({"train", "--model", "tiny-gdn", "--data", "d.h5", "--out", ""}, space, "--out must be given, got nothing");
  expect_refused({"tokenize", "--input", "text.txt", "--out", "./text.txt"}, space, "--out must not be one of the inputs");
  expect_refused(train_words("RUN", {"--schedule", "square"}), space, "square");
  expect_refused(train_words("RUN", {"--steps", "7"}), space, "--steps");
  expect_refused({"train", "--model", "tiny-gdn", "--out", "RUN"}, space, "--data");
  expect_refused({"train", "--model", "tiny-gdn", "--data", "none.h5", "--out", "RUN"}, space, "none.h5");
  expect_refused({"train", "--model", "tiny-gdn", "--data", "d.h5:-1", "--out", "RUN"}, space, "d.h5:-1");
  expect_refused({"tokenize", "--input", "none.txt", "--out", "e.h5"}, space, "none.txt");
  expect_refused({"eval", "--model", "d.h5", "--task", "ruler"}, space, "ruler");
  expect_refused({"generate", "--model", "nowhere", "--prompt", "x"}, space, "nowhere");
  expect_refused({"check", "none.safetensors"}, space, "none.safetensors");
  expect_refused(train_words("RUN", {"--device", "cuda"}), space, "--device");  // the tests hide every GPU
  expect_refused({"study", "--preset", "smoke", "--text", "text.txt", "--out", "R", "--device", "cuda"}, space, "--device");
  const std::string model = data_path("models/gla_hybrid"), tokens = model + "/case.safetensors";
  expect_refused({"forward", "--model", model, "--tokens", tokens, "--out", "o", "--device", "cuda"}, space, "--dtype must be f32 or bf16");
}

TEST(BadInput, DataSets) {
  const Workspace space;
  make_data(space);
  {
    TokenDatasetWriter writer(space / "big.h5", 1000, "bytes");
    writer.add_document(std::vector<int64_t>(300, 5));
    writer.close();
  }
  expect_refused({"train", "--model", "tiny-gdn", "--data", "big.h5", "--out", "RUN"}, space, "1000");
  const std::string whole = space.read("d.h5");
  space.write("half.h5", whole.substr(0, whole.size() / 2));
  expect_refused({"train", "--model", "tiny-gdn", "--data", "half.h5", "--out", "RUN"}, space, "half.h5");
  expect_refused({"inspect", "half.h5"}, space, "half.h5");
  space.write("one.txt", "x");
  expect_done(braid_program({"tokenize", "--input", "one.txt", "--out", "one.h5"}, space));
  expect_done(braid_program(train_words("M", {"--threads", "1"}), space));
  expect_refused({"eval", "--model", "M", "--data", "one.h5", "--json", "scores.json"}, space, "one.h5");
  expect_refused({"train", "--model", "tiny-gdn", "--data", "one.h5", "--out", "RUN"}, space, "two tokens in a row");
  expect_refused(train_words("RUN", {"--val-data", "one.h5"}), space, "--val-data must hold two tokens in a row");
}

TEST(BadInput, OptionsThatDoNotGoTogether) {
  const Workspace space;
  make_data(space);
  expect_done(braid_program(train_words("M"), space));
  expect_refused({"eval", "--model", "M", "--task", "recall", "--data", "d.h5"}, space, "--data must be given with --task ppl");
  expect_refused({"eval", "--model", "M", "--data", "d.h5", "--recall", "copy"}, space, "--recall must be given with --task recall");
  expect_refused(
      {"train", "--model", "tiny-gdn-3-1", "--data", "d.h5", "--out", "M", "--steps", "4", "--batch-tokens", "128", "--context", "64", "--resume"},
      space, "--steps must be at least the 6 steps that M has done, got 4");
}

TEST(BadInput, SafetensorsHeaders) {
  const Workspace space;
  space.write("huge.safetensors", little_endian(uint64_t{1} << 60) + "{}");
  space.write("overlap.safetensors",
              safetensors(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})", 12));
  space.write("range.safetensors", safetensors(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 4));
  for (const char* name : {"huge.safetensors", "overlap.safetensors", "range.safetensors"}) {
    expect_refused({"inspect", name}, space, name);
    expect_refused({"check", name}, space, name);
  }
}

TEST(BadInput, ModelsAndTokens) {
  const Workspace space;
  make_data(space);
  space.write("heads.json",
              R"({"model_type":"gated_deltanet","hidden_size":64,"num_hidden_layers":2,"vocab_size":256,"num_heads":3,"num_v_heads":4})");
  expect_refused({"train", "--model", "heads.json", "--data", "d.h5", "--out", "RUN"}, space, "num_v_heads");
  space.write("broken.json", "{");
  expect_refused({"train", "--model", "broken.json", "--data", "d.h5", "--out", "RUN"}, space, "broken.json");
  Context ctx(1);
  const std::string model = data_path("models/gla_hybrid");
  write_safetensors(ctx, space / "t.safetensors", {{"tokens", from_vector<int64_t>(ctx, {1, 61}, {2})}});
  expect_refused({"forward", "--model", model, "--tokens", "t.safetensors", "--out", "o.safetensors"}, space, "61");
  expect_refused({"forward", "--model", model, "--tokens", "t.safetensors", "--out", "./t.safetensors"}, space, "--out must not be");
  for (const std::vector<int64_t>& ends : {std::vector<int64_t>{0, 2, 1, 3}, {0, 2}, {1, 3}}) {
    write_safetensors(ctx, space / "t.safetensors",
                      {{"tokens", from_vector<int64_t>(ctx, {1, 2, 3}, {3})},
                       {"cu_seqlens", from_vector<int64_t>(ctx, ends, {static_cast<int64_t>(ends.size())})}});
    expect_refused({"forward", "--model", model, "--tokens", "t.safetensors", "--out", "o.safetensors"}, space, "cu_seqlens");
  }
}

TEST(BadInput, PlacesThatCannotBeWritten) {
  const Workspace space;
  make_data(space);
  expect_refused(train_words("text.txt/RUN"), space, "--out");
  expect_refused(train_words("/proc/RUN"), space, "/proc/RUN");
  expect_refused({"tokenize", "--input", "text.txt", "--out", "text.txt/e.h5"}, space, "--out");
  expect_refused({"convert", "--from", data_path("models/gla_hybrid"), "--to", "text.txt/M"}, space, "--to");
  expect_refused({"models", "--json", "none/m.json"}, space, "--json");
}

TEST(Help, EveryCommandExplainsItselfWithAnExample) {
  const Workspace space;
  for (const char* command : {"tokenize", "train", "eval", "generate", "forward", "check", "convert", "bench", "study", "models", "inspect"}) {
    const ProgramResult result = braid_program({command, "--help"}, space);
    expect_done(result);
    EXPECT_EQ(braid_program({command, "-h"}, space).out, result.out);
    EXPECT_NE(result.out.find("example:\n  braid " + std::string(command)), std::string::npos) << result.out;
  }
  expect_done(braid_program({"--version"}, space));
  EXPECT_EQ(run(BRAID_PROGRAM, {}, space).status, 2);
}

}  // namespace
}  // namespace braid::test
