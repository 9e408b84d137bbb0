// Runs in a directory: killed, interrupted, damaged, on a full disk.
#include "train/run.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <csignal>
#include <fstream>
#include <nlohmann/json.hpp>

#include "io/file.h"
#include "tests/train/tiny_model.h"
#include "train/data_loader.h"
#include "train/interrupt.h"

namespace braid::testing {
namespace {

constexpr int64_t kVocab = 50;
namespace fs = std::filesystem;

struct Notes final : TrainObserver {
  std::vector<std::string> notes;
  std::function<void(const StepReport&)> at_step;
  void on_note(const std::string& text) override { notes.push_back(text); }
  void on_step(const StepReport& report) override {
    if (at_step) at_step(report);
  }
  bool any(const std::string& part) const {
    for (const std::string& note : notes)
      if (note.find(part) != std::string::npos) return true;
    return false;
  }
};

RunOptions in(const fs::path& directory, bool resume = false, int64_t save_every = 1) {
  RunOptions options;
  options.directory = directory;
  options.config = "{}";
  options.resume = resume;
  options.save_every = save_every;
  return options;
}

struct Result {
  RunEnd end;
  std::vector<double> values;
};

Result run(const RunOptions& options, int64_t steps, Notes& notes) {
  Context ctx;
  TinyModel model(ctx, kVocab, 8);
  DataLoader data({{make_token_source(numbered_documents({70, 3, 1, 40, 25}, kVocab)), 1}},
                  {.batch_tokens = 32, .context = 8, .seed = 3, .shuffle = true, .share = {}});
  TrainOptions with;
  with.schedule = {.kind = ScheduleKind::cosine, .peak = 0.01, .steps = steps};
  Trainer trainer(ctx, model, model.score(), data, with);
  const RunEnd end = run_training(trainer, options, notes);
  return {end, model.values(ctx)};
}

Result run(const RunOptions& options, int64_t steps) {
  Notes notes;
  return run(options, steps, notes);
}

/// metrics.jsonl without what depends on the clock and the machine.
std::vector<std::string> metrics(const fs::path& directory) {
  std::vector<std::string> lines;
  std::ifstream file(directory / "metrics.jsonl");
  for (std::string line; std::getline(file, line);) {
    auto json = nlohmann::json::parse(line);
    for (const char* key : {"step", "tokens", "loss", "lr", "grad_norm", "tokens_per_s", "mfu", "memory_bytes", "time"})
      EXPECT_TRUE(json.contains(key));
    for (const char* key : {"tokens_per_s", "mfu", "memory_bytes", "time"}) json.erase(key);
    lines.push_back(json.dump());
  }
  return lines;
}

/// Runs `body` in a child process and kills it after `microseconds` (negative: lets it end). True when it was killed.
template <class Body>
bool in_child(int64_t microseconds, Body&& body) {
  const pid_t child = ::fork();
  if (child == 0) {
    try {
      body();
    } catch (const std::exception& error) {
      std::fprintf(stderr, "child: %s\n", error.what());
      ::_exit(1);
    }
    ::_exit(0);
  }
  if (microseconds >= 0) {
    ::usleep(static_cast<useconds_t>(microseconds));
    ::kill(child, SIGKILL);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_TRUE(WIFSIGNALED(status) || WEXITSTATUS(status) == 0);
  return WIFSIGNALED(status);
}

TEST(Run, ValidationAndSavingAreNoPartOfAStepsTime) {
  const TemporaryDirectory directory;
  RunOptions options = in(directory.path());
  options.val_every = 2;
  options.validate = [] {
    ::usleep(200'000);
    return 1.0;
  };
  Notes notes;
  int64_t num_validated = 0;
  notes.at_step = [&](const StepReport& report) {
    EXPECT_LT(32 / report.tokens_per_s, 0.1) << "step " << report.step;
    EXPECT_LT(report.time, 0.2) << "step " << report.step;
    num_validated += report.val_loss ? 1 : 0;
  };
  run(options, 6, notes);
  EXPECT_EQ(num_validated, 3);
}

TEST(Run, KilledAnywhereItEndsWithTheSameBits) {
  const TemporaryDirectory whole, broken;
  const Result want = run(in(whole.path()), 60);
  Random random(static_cast<uint64_t>(::getpid()));
  int num_kills = 0;
  for (int attempt = 0; attempt < 25; ++attempt) {
    num_kills += in_child(5000 + static_cast<int64_t>(random.below(60000)), [&] { run(in(broken.path(), true), 60); });
    std::vector<std::string> notes;
    newest_whole_checkpoint(broken.path(), notes);
    EXPECT_TRUE(notes.empty()) << notes[0];  // a kill leaves no damaged checkpoint
  }
  EXPECT_GE(num_kills, 1);
  const Result got = run(in(broken.path(), true), 60);
  EXPECT_EQ(got.values, want.values);
  EXPECT_EQ(metrics(broken.path()), metrics(whole.path()));
  EXPECT_EQ(metrics(whole.path()).size(), 60u);
  for (const fs::path& path : list_directory(broken.path() / "checkpoints")) EXPECT_FALSE(is_temporary_name(path.filename().string())) << path;
}

TEST(Run, KeepsTheNewestCheckpointsAndRefusesToStartOver) {
  const TemporaryDirectory directory;
  RunOptions options = in(directory.path());
  options.keep = 2;
  run(options, 7);
  const std::vector<fs::path> left = list_checkpoints(directory.path());
  ASSERT_EQ(left.size(), 2u);
  EXPECT_EQ(left[0].filename(), "step-00000006");
  EXPECT_EQ(left[1].filename(), "step-00000007");
  const std::string message = error_of([&] { run(options, 7); });
  EXPECT_NE(message.find("holds a checkpoint"), std::string::npos) << message;
  options.resume = true;
  EXPECT_EQ(run(options, 7).end, RunEnd::finished);
  EXPECT_EQ(metrics(directory.path()).size(), 7u);
}

TEST(Run, SigtermFinishesTheStepAndSaves) {
  const TemporaryDirectory directory, whole;
  Notes notes;
  notes.at_step = [](const StepReport& report) {
    if (report.step == 4) ::raise(SIGTERM);
  };
  {
    InterruptGuard guard;
    EXPECT_EQ(run(in(directory.path(), false, 0), 9, notes).end, RunEnd::interrupted);
  }
  EXPECT_EQ(list_checkpoints(directory.path()).at(0).filename(), "step-00000004");
  InterruptGuard guard;
  EXPECT_EQ(run(in(directory.path(), true, 0), 9).values, run(in(whole.path(), false, 0), 9).values);
  EXPECT_EQ(metrics(directory.path()), metrics(whole.path()));
}

/// Bytes of a file, to be damaged.
std::string bytes_of(const fs::path& path) { return read_file(path); }
void put(const fs::path& path, const std::string& bytes) { std::ofstream(path, std::ios::binary) << bytes; }

TEST(Checkpoint, DamageIsFoundNamedAndPassedOver) {
  const TemporaryDirectory directory;
  run(in(directory.path()), 2);
  const std::vector<fs::path> paths = list_checkpoints(directory.path());
  Random random(8);
  for (const char* name : {"model.h5", "optimizer.h5", "state.json", "manifest.json"}) {
    const fs::path file = paths.at(1) / name;
    const std::string bytes = bytes_of(file);
    const auto expect_passed_over = [&](const std::string& how) {
      std::vector<std::string> notes;
      const auto found = newest_whole_checkpoint(directory.path(), notes);
      ASSERT_TRUE(found && found->step() == 1) << name << ' ' << how;
      ASSERT_EQ(notes.size(), 1u);
      EXPECT_NE(notes[0].find(name), std::string::npos) << notes[0];
      EXPECT_EQ(notes[0].find('\n'), std::string::npos) << notes[0];
    };
    for (int i = 0; i < 60; ++i) {
      const size_t place = i == 0 ? 0 : i == 1 ? bytes.size() - 2 : random.below(bytes.size() - 1);
      std::string flipped = bytes;
      flipped[place] = static_cast<char>(flipped[place] ^ (1 << random.below(8)));
      put(file, flipped);
      if (std::string_view(name) == "manifest.json") {
        // A flip may change a name or a number in it: any error will do, but it must not be believed.
        std::vector<std::string> notes;
        const auto found = newest_whole_checkpoint(directory.path(), notes);
        ASSERT_TRUE(found && found->step() == 1) << "byte " << place;
      } else {
        expect_passed_over("byte " + std::to_string(place));
      }
    }
    for (size_t length : {size_t{0}, bytes.size() / 2, bytes.size() - 1}) {
      put(file, bytes.substr(0, length));
      if (std::string_view(name) != "manifest.json" || length + 1 < bytes.size()) expect_passed_over("cut to " + std::to_string(length));
    }
    fs::remove(file);
    expect_passed_over("missing");
    put(file, bytes);
    std::vector<std::string> notes;
    EXPECT_EQ(newest_whole_checkpoint(directory.path(), notes)->step(), 2);
  }
}

TEST(Checkpoint, AnotherVersionIsRefused) {
  const TemporaryDirectory directory;
  run(in(directory.path()), 1);
  const fs::path path = list_checkpoints(directory.path()).at(0);
  auto manifest = nlohmann::json::parse(bytes_of(path / "manifest.json"));
  manifest["version"] = 2;
  put(path / "manifest.json", manifest.dump());
  const std::string message = error_of([&] { CheckpointReader reader(path); });
  EXPECT_EQ(message, (path / "manifest.json").string() + ": expected a checkpoint of version 1, got 2");
}

TEST(Run, GoesBackToTheLastWholeCheckpoint) {
  const TemporaryDirectory directory, whole;
  run(in(directory.path(), false, 2), 6);
  fs::resize_file(directory.path() / "checkpoints" / "step-00000006" / "model.h5", 100);
  fs::create_directory(directory.path() / "checkpoints" / ".step-00000008.braid-tmp-1-0");
  Notes notes;
  RunOptions options = in(directory.path(), true, 1);
  options.keep = 1;
  const Result got = run(options, 6, notes);
  EXPECT_TRUE(notes.any("model.h5")) << "the damaged file is named";
  EXPECT_TRUE(notes.any("step-00000004"));
  EXPECT_EQ(got.values, run(in(whole.path()), 6).values);
  EXPECT_EQ(metrics(directory.path()), metrics(whole.path()));
  EXPECT_EQ(list_directory(directory.path() / "checkpoints").size(), 1u);
}

TEST(Run, AFullDiskLeavesTheFormerCheckpointWhole) {
  const TemporaryDirectory directory, whole;
  run(in(directory.path()), 3);
  for (int64_t limit : {0, 100, 2000, 4000, 6000}) {
    in_child(-1, [&] {
      ::signal(SIGXFSZ, SIG_IGN);
      Context ctx;
      const CheckpointReader reader(list_checkpoints(directory.path()).back());
      Checkpoint next{.step = 4, .config = "{}", .state = "{}", .parameters = {}, .first_moments = {}, .second_moments = {}};
      next.parameters.push_back({"x", Tensor::zeros(ctx, {5000}, DType::f32)});
      const rlimit small{static_cast<rlim_t>(limit), static_cast<rlim_t>(limit)};
      ::setrlimit(RLIMIT_FSIZE, &small);
      const std::string message = error_of([&] { write_checkpoint(ctx, directory.path(), next); });
      if (message.empty()) ::_exit(3);
    });
    std::vector<std::string> notes;
    EXPECT_EQ(newest_whole_checkpoint(directory.path(), notes)->step(), 3);
    EXPECT_TRUE(notes.empty());
    EXPECT_EQ(list_directory(directory.path() / "checkpoints").size(), 3u);
  }
}

TEST(Run, AnErrorBeforeTheFirstStepLeavesNothing) {
  class Broken final : public TokenSource {
   public:
    int64_t num_tokens() const override { return 100; }
    int64_t document_end(int64_t) const override { return 100; }
    void read(int64_t, int64_t, int64_t*) const override { fail("the data cannot be read"); }
    uint64_t fingerprint() const override { return 1; }
  };
  const TemporaryDirectory space;
  Context ctx;
  TinyModel model(ctx, kVocab, 8);
  DataLoader data({{std::make_shared<Broken>(), 1}}, {.batch_tokens = 32, .context = 8, .seed = 3, .shuffle = true, .share = {}});
  Trainer trainer(ctx, model, model.score(), data, {});
  Notes notes;
  fs::create_directory(space.path() / "there");
  for (const char* run : {"a/b/RUN", "there"}) EXPECT_THROW(run_training(trainer, in(space.path() / run), notes), Error);
  EXPECT_FALSE(fs::exists(space.path() / "a"));
  EXPECT_TRUE(fs::is_empty(space.path() / "there"));
}

TEST(Run, TwoProcessesDoNotShareADirectory) {
  const TemporaryDirectory directory;
  Notes notes;
  std::string message;
  notes.at_step = [&](const StepReport& report) {
    if (report.step == 1) message = error_of([&] { run(in(directory.path(), true), 2); });
  };
  run(in(directory.path()), 2, notes);
  EXPECT_NE(message.find("another process"), std::string::npos) << message;
}

TEST(Run, ValidatesAndReportsIt) {
  const TemporaryDirectory directory;
  RunOptions options = in(directory.path(), false, 0);
  options.val_every = 2;
  options.validate = [] { return 1.5; };
  std::vector<int64_t> validated;
  Notes notes;
  notes.at_step = [&](const StepReport& report) {
    if (report.val_loss) validated.push_back(report.step);
  };
  run(options, 5, notes);
  EXPECT_EQ(validated, (std::vector<int64_t>{2, 4}));
  EXPECT_NE(metrics(directory.path()).at(1).find("\"val_loss\":1.5"), std::string::npos);
  options.validate = nullptr;
  options.directory.clear();
  EXPECT_NE(error_of([&] { run(options, 5); }), "");
}

}  // namespace
}  // namespace braid::testing
