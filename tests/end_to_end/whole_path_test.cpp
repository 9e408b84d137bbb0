// A user's whole path through the program, and what a run survives.
#include <signal.h>

#include <chrono>
#include <thread>

#include "io/safetensors.h"
#include "tests/end_to_end/braid_program.h"

namespace braid::test {
namespace {

TEST(WholePath, FromTextToGradients) {
  const Workspace space;
  make_data(space);
  expect_done(braid_program(train_words("RUN", {"--val-data", "d.h5", "--val-every", "3", "--val-tokens", "512", "--memory", "--json", "train.json"}),
                            space));
  const Json trained = parse_json("train", space.read("train.json"));
  EXPECT_EQ(trained["end"], "finished");
  EXPECT_EQ(trained["steps"], 6);
  EXPECT_EQ(trained["last_step"]["step"], 6);
  EXPECT_TRUE(trained["last_step"].contains("val_loss"));
  expect_done(braid_program({"eval", "--model", "RUN", "--data", "d.h5", "--context", "64", "--max-tokens", "1024", "--json", "eval.json"}, space));
  EXPECT_GT(parse_json("eval", space.read("eval.json"))["results"][0]["perplexity"].get<double>(), 1);
  expect_done(braid_program({"eval", "--model", "RUN", "--task", "recall", "--examples", "32", "--json", "recall.json"}, space));
  EXPECT_GE(parse_json("recall", space.read("recall.json"))["accuracy"].get<double>(), 0);
  expect_done(braid_program({"convert", "--from", "RUN", "--to", "MODEL", "--json", "convert.json"}, space));
  EXPECT_EQ(parse_json("convert", space.read("convert.json"))["parameters"], 374688);
  expect_done(braid_program({"convert", "--from", "MODEL", "--to", "RUN2", "--as", "run"}, space));
  expect_done(braid_program({"convert", "--from", "RUN2", "--to", "MODEL2"}, space));
  EXPECT_EQ(space.read("MODEL/model.safetensors"), space.read("MODEL2/model.safetensors"));
  Context ctx(1);
  write_safetensors(ctx, space / "t.safetensors", {{"tokens", from_vector<int64_t>(ctx, {1, 2, 3, 4, 5}, {5})}});
  expect_done(braid_program(
      {"forward", "--model", "MODEL", "--tokens", "t.safetensors", "--out", "o.safetensors", "--grad", "--dtype", "f32", "--json", "forward.json"},
      space));
  EXPECT_EQ(parse_json("forward", space.read("forward.json"))["tokens"], 5);
  const Safetensors out(space / "o.safetensors");
  EXPECT_EQ(out.get("logits").shape(), Shape({5, 256}));
  EXPECT_EQ(out.get("logits").dtype(), DType::f32);
  EXPECT_EQ(out.get("loss").rank(), 0);
  EXPECT_TRUE(out.contains("grad.model.embeddings.weight"));
  for (const char* what : {"RUN", "MODEL", "d.h5", "o.safetensors"}) {
    expect_done(braid_program({"inspect", what, "--json", "inspect.json"}, space));
    EXPECT_TRUE(parse_json("inspect", space.read("inspect.json")).contains("kind"));
  }
  expect_done(braid_program({"models", "--json", "models.json"}, space));
  EXPECT_GT(parse_json("models", space.read("models.json"))["models"].size(), 20u);
}

TEST(WholePath, GenerationIsReproducibleAndIndependentOfTheChunk) {
  const Workspace space;
  make_data(space);
  expect_done(braid_program(train_words("RUN"), space));
  const Words words = {"generate", "--model", "RUN", "--prompt", "the number 12 comes", "--max-tokens", "24", "--temperature", "0", "--dtype", "f64"};
  Words small = words;
  small.insert(small.end(), {"--chunk", "3"});
  const ProgramResult whole = braid_program(words, space);
  expect_done(whole);
  EXPECT_TRUE(whole.out.starts_with("the number 12 comes"));
  EXPECT_EQ(whole.out, braid_program(small, space).out);
  Words plain(words.begin(), words.end() - 2), single = plain;
  single.insert(single.end(), {"--dtype", "f32"});
  EXPECT_EQ(braid_program(plain, space).out, braid_program(single, space).out) << "f32 is the default on the CPU";
}

TEST(WholePath, ConfigFileIsReadAndTheCommandLineWins) {
  const Workspace space;
  make_data(space);
  space.write("c.ini", "model = tiny-gla\ndata = d.h5\nsteps = 9\nbatch-tokens = 128\ncontext = 64\n");
  const ProgramResult result = braid_program({"train", "--config", "c.ini", "--steps", "2", "--out", "RUN"}, space);
  expect_done(result);
  EXPECT_NE(result.out.find("after step 2 of 2"), std::string::npos) << result.out;
  space.write("bad.ini", "stepz = 9\n");
  expect_refused({"train", "--config", "bad.ini"}, space, "--stepz");
}

/// Neither a home, nor a place for temporary files, nor the language of the user are asked for.
TEST(Run, DoesNotDependOnItsSurroundings) {
  const Workspace space;
  make_data(space);
  Words words = {"HOME=/nonexistent", "TMPDIR=/nonexistent", "LC_ALL=de_DE.UTF-8", "TZ=Pacific/Kiritimati", "PATH=", BRAID_PROGRAM};
  for (const std::string& word : train_words("A")) words.push_back(word);
  expect_done(run("/usr/bin/env", words, space));
  expect_done(braid_program(train_words("B"), space));
  for (const char* run : {"A", "B"}) expect_done(braid_program({"convert", "--from", run, "--to", std::string("model") + run}, space));
  EXPECT_EQ(space.read("modelA/model.safetensors"), space.read("modelB/model.safetensors"));
  EXPECT_NE(space.read("A/metrics.jsonl").find("\"loss\":5."), std::string::npos) << "a point, whatever the language";
}

/// The row of a table that begins with `name`, without runs of blanks; empty: there is none.
std::string row_of(const std::string& table, const std::string& name) {
  std::istringstream lines(table);
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with(name + " ")) continue;
    line.erase(std::unique(line.begin(), line.end(), [](char a, char b) { return a == ' ' && b == ' '; }), line.end());
    return line;
  }
  return "";
}

TEST(Run, TellsItsMemoryByKindAndByOperator) {
  const Workspace space;
  make_data(space);
  const ProgramResult single = braid_program(train_words("A", {"--memory", "--dtype", "f32"}), space),
                      half = braid_program(train_words("B", {"--memory", "--dtype", "bf16"}), space),
                      again =
                          braid_program(train_words("C", {"--memory", "--dtype", "f32", "--recompute", "block", "--recompute-layers", "2"}), space);
  for (const ProgramResult* result : {&single, &half, &again}) {
    expect_done(*result);
    EXPECT_EQ(row_of(result->out, "parameters"), "parameters 1.429 MiB") << result->out;
    EXPECT_EQ(row_of(result->out, "optimizer moments"), "optimizer moments 2.859 MiB") << result->out;
  }
  EXPECT_EQ(row_of(single.out, "bf16 copies of parameters"), "");
  EXPECT_NE(row_of(half.out, "bf16 copies of parameters"), "");
  EXPECT_NE(row_of(half.out, "linear"), row_of(single.out, "linear")) << "what is kept depends on the type computed in";
  EXPECT_TRUE(row_of(single.out, "gated_delta_rule").starts_with("gated_delta_rule 4 ")) << single.out;
  EXPECT_TRUE(row_of(again.out, "gated_delta_rule").starts_with("gated_delta_rule 2 ")) << again.out;
  EXPECT_TRUE(row_of(again.out, "recompute").starts_with("recompute 2 ")) << again.out;
  for (const char* run : {"A", "C"}) expect_done(braid_program({"convert", "--from", run, "--to", std::string("model") + run}, space));
  EXPECT_EQ(space.read("modelA/model.safetensors"), space.read("modelC/model.safetensors"));
}

TEST(Run, IsValidatedAtItsEndAtLeast) {
  const Workspace space;
  make_data(space);
  expect_done(braid_program(train_words("RUN", {"--val-data", "d.h5", "--val-tokens", "512"}), space));
  std::istringstream lines(space.read("RUN/metrics.jsonl"));
  int64_t num_steps = 0;
  for (std::string line; std::getline(lines, line);) EXPECT_EQ(parse_json("metrics", line).contains("val_loss"), ++num_steps == 6) << line;
  EXPECT_EQ(num_steps, 6);
}

TEST(Run, HoldingACheckpointIsRefusedWithoutResume) {
  const Workspace space;
  make_data(space);
  expect_done(braid_program(train_words("RUN"), space));
  expect_refused(train_words("RUN"), space, "resume");
}

TEST(Run, FromConvertedValuesIsTheSameAsInitFrom) {
  const Workspace space;
  make_data(space);
  expect_done(braid_program(train_words("RUN"), space));
  expect_done(braid_program({"convert", "--from", "RUN", "--to", "MODEL"}, space));
  expect_done(braid_program({"convert", "--from", "MODEL", "--to", "A", "--as", "run"}, space));
  const ProgramResult resumed = braid_program(train_words("A", {"--resume"}), space);
  expect_done(resumed);
  EXPECT_NE(resumed.out.find("values only, the optimizer starts anew"), std::string::npos) << resumed.out;
  expect_done(braid_program(train_words("B", {"--init-from", "MODEL"}), space));
  for (const char* run : {"A", "B"}) expect_done(braid_program({"convert", "--from", run, "--to", std::string("model") + run}, space));
  EXPECT_EQ(space.read("modelA/model.safetensors"), space.read("modelB/model.safetensors"));
  EXPECT_NE(space.read("modelA/model.safetensors"), space.read("MODEL/model.safetensors"));
}

TEST(Run, ALimitOnFileSizesIsAnErrorOfOneLine) {
  const Workspace space;
  make_data(space);
  expect_done(braid_program(train_words("RUN"), space));
  const auto limited = [&](const Words& words) {
    std::string line = "ulimit -f 64 && exec " BRAID_PROGRAM;  // 64 KiB: a checkpoint has more
    for (const std::string& word : words) line += " " + word;
    return run("/bin/bash", {"-c", line}, space);
  };
  Words longer = train_words("RUN", {"--resume"});
  longer[8] = "7";
  const std::vector<Words> commands = {longer, train_words("RUN2"), {"convert", "--from", "RUN", "--to", "MODEL"}};
  for (const Words& words : commands) {
    const ProgramResult result = limited(words);
    EXPECT_EQ(result.status, 2) << words[0] << ": " << result.err;
    EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
    EXPECT_NE(result.err.find("File too large"), std::string::npos) << result.err;
  }
  EXPECT_FALSE(std::filesystem::exists(space / "MODEL"));
  expect_done(braid_program({"inspect", "RUN"}, space));
}

TEST(Run, KilledAtRandomAndResumedEndsWithTheSameBits) {
  const Workspace space;
  make_data(space);
  const Words more = {"--steps", "40", "--save-every", "3", "--resume"};
  Words words = train_words("A", more);
  words.erase(words.begin() + 7, words.begin() + 9);  // its own --steps
  expect_done(braid_program(words, space));
  words[6] = "B";
  Random random(static_cast<uint64_t>(5));
  int kills = 0;
  for (int i = 0; i < 5; ++i) {
    const pid_t process = start(BRAID_PROGRAM, words, space, space / "out", space / "err");
    std::this_thread::sleep_for(std::chrono::milliseconds(60 + random.below(500)));
    kill(process, SIGKILL);
    kills += wait_for(process) == 128 + SIGKILL;
  }
  EXPECT_GT(kills, 0);
  const ProgramResult last = braid_program(words, space);
  expect_done(last);
  for (const char* run : {"A", "B"}) expect_done(braid_program({"convert", "--from", run, "--to", std::string("model") + run}, space));
  EXPECT_EQ(space.read("modelA/model.safetensors"), space.read("modelB/model.safetensors"));
}

TEST(Run, SigtermWritesACheckpointAndExitsWithZero) {
  const Workspace space;
  make_data(space);
  Words words = train_words("RUN");
  words[8] = "100000";
  const pid_t process = start(BRAID_PROGRAM, words, space, space / "out", space / "err");
  for (int i = 0; i < 400 && space.read("RUN/metrics.jsonl").empty(); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(25));
  kill(process, SIGTERM);
  EXPECT_EQ(wait_for(process), 0) << space.read("err");
  const ProgramResult inspected = braid_program({"inspect", "RUN"}, space);
  expect_done(inspected);
  EXPECT_NE(inspected.out.find("whole"), std::string::npos);
}

}  // namespace
}  // namespace braid::test
