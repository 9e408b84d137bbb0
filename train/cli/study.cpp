// braid study: trains and scores a grid of families and ratios, writes the report.
#include <unistd.h>

#include <cstdio>
#include <iostream>

#include "io/json.h"
#include "train/cli/commands.h"
#include "train/cli/options.h"
#include "train/interrupt.h"
#include "train/metrics.h"
#include "train/study/report.h"

namespace braid::cli {
namespace {

/// One live line on a terminal, plain lines elsewhere.
class StudyProgress {
 public:
  void say(const std::string& line) {
    if (live_) std::fprintf(stderr, "\r\033[K%s", fit_to_terminal(line, STDERR_FILENO).c_str());
    else std::fprintf(stderr, "%s\n", line.c_str());
    std::fflush(stderr);
  }
  void finish() {
    if (live_) std::fprintf(stderr, "\r\033[K");
  }

 private:
  bool live_ = terminal_columns(STDERR_FILENO) > 0;
};

StudyOptions chosen_study(const std::string& preset, const std::string& grid) {
  BRAID_CHECK(preset.empty() || grid.empty(), "--preset and --grid must not be given together, got both");
  if (grid.empty()) return study_preset(preset.empty() ? "quickstart" : preset);
  require_file("--grid", grid);
  return parse_study(read_json(grid));
}

}  // namespace

int run_study(const Arguments& arguments) {
  std::string preset, grid, out = "quickstart", json, device = "cpu";
  std::vector<std::string> text;
  int64_t jobs = 0;
  Options options("study", "train and evaluate a grid of family x ratio x seed; writes report.html, results.json and recall.svg",
                  "braid study --preset quickstart --text . --out quickstart");
  options.text("preset", "quickstart (minutes on two cores) or smoke (seconds; its numbers mean nothing)", preset);
  options.text("grid",
               "a JSON file that describes the study: {\"preset\": \"quickstart\", \"families\": [\"hgrn2\"], \"ratios\": [\"pure\", \"3-1\"], ...}",
               grid);
  options.list("text", "files and directories whose text is learned; every tenth file is for validation (default: .)", text);
  options.text("out", "directory of the report", out);
  options.integer("jobs", "models trained at the same time, one thread each; 0: as the study says (two, if it says nothing)", jobs);
  options.choice("device", "where to train; not the GPU unless asked: models this small leave it idle", device, {"cpu", "cuda"});
  options.reads({"grid", "text"});
  options.json(json);
  if (!options.parse(arguments)) return kDone;
  StudyOptions study = chosen_study(preset, grid);
  if (jobs > 0) study.jobs = jobs;
  check_study(study);
  const StudyDevice where = [&] { return make_context({.device = device, .threads = 1}, DType::f32); };
  if (device == "cuda") where();  // a machine without one is refused before anything is written
  require_writable_directory("--out", out);
  require_writable_file("--json", json);
  const StudyText corpus = read_study_text(text.empty() ? std::vector<std::string>{"."} : text);
  make_directories(out);
  InterruptGuard guard;
  StudyProgress progress;
  const StudyObserver observer{.on_progress = [&](const std::string& line) { progress.say(line); },
                               .on_run = [&](const StudyResult& so_far) { write_report(out, so_far); }};
  const StudyResult result = run_study(study, corpus, observer, where);
  progress.finish();
  write_report(out, result);
  if (!json.empty()) write_file(json, to_json(result).dump(2) + "\n");
  std::cout << to_table(result);
  for (const std::string& line : findings(result)) std::cout << line << '\n';
  if (interrupted()) std::cout << "interrupted: " << result.runs.size() << " runs were finished and are reported\n";
  std::cout << "report: " << out << "/report.html\n";
  return kDone;
}

}  // namespace braid::cli
