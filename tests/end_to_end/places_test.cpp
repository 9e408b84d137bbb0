// Where commands write: never over what they read, and never a run where a model directory is, or the other way round.
#include <filesystem>

#include "tests/end_to_end/braid_program.h"

namespace braid::test {
namespace {

void copy_case(const Workspace& space, const std::string& name, const std::string& to) {
  std::filesystem::copy(data_path("models/" + name), space / to, std::filesystem::copy_options::recursive);
}

/// Refused, and `file` has the bytes it had.
void expect_kept(const Words& words, const Workspace& space, const std::string& file, const std::string& named) {
  const std::string before = space.read(file);
  expect_refused(words, space, named);
  EXPECT_EQ(space.read(file), before) << words[0];
}

TEST(Places, NoInputIsWrittenOver) {
  const Workspace space;
  make_data(space);
  copy_case(space, "gla_hybrid", "M");
  std::filesystem::copy_file(data_path("ops/attention.safetensors"), space / "c.safetensors");
  std::filesystem::create_symlink("d.h5", space / "link.h5");
  const std::string input = "must not be one of the inputs", file = "must not be a file of the model or run that --model names";
  const Words forward = {"forward", "--model", "M", "--tokens", "M/case.safetensors"};
  const auto and_then = [](Words words, const Words& more) {
    words.insert(words.end(), more.begin(), more.end());
    return words;
  };
  expect_kept(and_then(forward, {"--out", "M/model.safetensors"}), space, "M/model.safetensors", "--out " + file);
  expect_kept(and_then(forward, {"--out", "./M/../M/case.safetensors"}), space, "M/case.safetensors", "--out " + input);
  expect_kept(and_then(forward, {"--out", "o", "--json", "M/config.json"}), space, "M/config.json", "--json " + file);
  expect_kept(and_then(forward, {"--out", "o", "--json", "./o"}), space, "d.h5", "--json must be another file than --out");
  expect_kept({"check", "c.safetensors", "--json", "c.safetensors"}, space, "c.safetensors", "--json " + input);
  expect_kept({"inspect", "M", "--json", "M/config.json"}, space, "M/config.json", "--json must not be");
  expect_kept({"eval", "--model", "M", "--data", "d.h5", "--json", "link.h5"}, space, "d.h5", "--json " + input);
  expect_kept({"tokenize", "--input", "text.txt", "--out", "e.h5", "--json", "text.txt"}, space, "text.txt", "--json " + input);
  expect_kept({"tokenize", "--input", "text.txt", "--out", "e.h5", "--json", "e.h5"}, space, "text.txt", "--json must be another file");
  expect_kept({"train", "--model", "tiny-gdn", "--data", "d.h5:0.5", "--out", "R", "--json", "d.h5"}, space, "d.h5", "--json " + input);
  expect_refused(train_words("R", {"--json", "R/metrics.jsonl"}), space, "--json must not be a file of the model or run that --out names");
  expect_refused({"convert", "--from", "M", "--to", "N", "--json", "N/config.json"}, space, "--json must not be");
  space.write("c.ini", "model = tiny-gla\ndata = d.h5\nout = R\njson = c.ini\n");
  expect_kept({"train", "--config", "c.ini"}, space, "c.ini", "--json " + input);
  expect_done(braid_program(and_then(forward, {"--out", "M/logits.safetensors", "--json", "M/loss.json"}), space));
  expect_done(braid_program(and_then(forward, {"--out", "M/logits.safetensors", "--json", "M/loss.json"}), space));  // nothing else reads these
}

TEST(Places, ARunIsNoModelDirectory) {
  const Workspace space;
  make_data(space);
  expect_done(braid_program(train_words("RUN"), space));
  expect_done(braid_program({"convert", "--from", "RUN", "--to", "M"}, space));
  expect_refused({"convert", "--from", "RUN", "--to", "RUN"}, space, "got the run RUN");
  expect_refused({"convert", "--from", "RUN", "--to", "RUN/checkpoints/step-00000006"}, space, "got the checkpoint RUN");
  expect_refused({"convert", "--from", "RUN", "--to", "M", "--as", "run"}, space, "holds a model directory (config.json)");
  expect_refused(train_words("M"), space, "--out must be a run or a new directory, got M");
  expect_refused(train_words("M", {"--resume"}), space, "--out must be a run or a new directory, got M");
  expect_refused({"convert", "--from", "M", "--to", "R", "--as", "run", "--dtype", "bf16"}, space, "--dtype must be f32 with --as run");
}

TEST(Places, WhereBothAreTheRunIsReadAndSaidOnce) {
  const Workspace space;
  make_data(space);
  expect_done(braid_program(train_words("RUN"), space));
  const Words eval = {"eval", "--model", "RUN", "--data", "d.h5", "--context", "64", "--max-tokens", "256"};
  const std::string trained = braid_program(eval, space).out;
  copy_case(space, "gla_hybrid", "M");
  std::filesystem::copy(space / "M", space / "RUN");
  const ProgramResult both = braid_program(eval, space);
  expect_done(both);
  EXPECT_EQ(both.out, trained);
  EXPECT_EQ(std::count(both.err.begin(), both.err.end(), '\n'), 1) << both.err;
  EXPECT_NE(both.err.find("read was the run's RUN/checkpoints/step-00000006"), std::string::npos) << both.err;
}

TEST(Places, ADamagedCheckpointIsToldOnceAndAFolderForWhatItIs) {
  const Workspace space;
  make_data(space);
  expect_done(braid_program(train_words("RUN", {"--save-every", "3"}), space));
  const std::string newest = "RUN/checkpoints/step-00000006";
  space.write(newest + "/model.h5", "damaged");
  const ProgramResult result = braid_program({"eval", "--model", "RUN", "--data", "d.h5", "--context", "64", "--max-tokens", "256"}, space);
  expect_done(result);
  EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
  std::filesystem::remove(space / (newest + "/manifest.json"));
  expect_refused({"inspect", newest}, space, "or a whole checkpoint (with manifest.json), got " + newest);
}

TEST(Places, AProfileIsOfTheFourthStepOrSaidToBeMissing) {
  const Workspace space;
  make_data(space);
  const ProgramResult profiled = braid_program(train_words("A", {"--profile"}), space);
  expect_done(profiled);
  EXPECT_NE(profiled.out.find("backward ms"), std::string::npos) << profiled.out;
  Words words = train_words("B", {"--profile"});
  words[8] = "3";
  const ProgramResult none = braid_program(words, space);
  expect_done(none);
  EXPECT_NE(none.out.find("no step was measured, there were only 3"), std::string::npos) << none.out;
}

TEST(Places, AStudyTakesAnyNumberOfJobsAndNamesTextItCannotRead) {
  const Workspace space;
  const std::string text = std::string(BRAID_SOURCE_DIR) + "/core";
  const ProgramResult many = braid_program({"study", "--preset", "smoke", "--text", text, "--out", "S", "--jobs", "40000"}, space);
  expect_done(many);
  EXPECT_NE(space.read("S/report.html").find("Another processor"), std::string::npos);
  const ProgramResult unread = braid_program({"study", "--preset", "smoke", "--text", "/proc/1/task", "--out", "S2"}, space);
  EXPECT_EQ(unread.status, 2);
  EXPECT_TRUE(unread.err.starts_with("braid study: --text")) << unread.err;
  EXPECT_EQ(unread.err.find("filesystem"), std::string::npos) << unread.err;
}

}  // namespace
}  // namespace braid::test
