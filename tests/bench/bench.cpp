// braid_bench: every operator on a GPU beside its floor. Needs no Boost; `braid bench --device cuda` times the same list.
#include <cstdio>
#include <fstream>
#include <iostream>
#include <string>

#include "core/error.h"
#include "cuda/runtime/runtime.h"
#include "train/cli/bench_gpu/bench_gpu.h"

namespace {

constexpr char kUsage[] =
    "braid_bench [--op NAME]... [--shape PART]... [--json FILE] [--quick]\n"
    "  --op NAME     only this operator (may be given again)\n"
    "  --shape PART  only shapes whose name has PART in it (may be given again: all of them)\n"
    "  --json FILE   the numbers as JSON too\n"
    "  --quick       50 ms a number instead of 300\n";

struct Options {
  braid::cli::GpuBenchOptions bench;
  std::string json;
  bool help = false;
};

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    const auto value = [&]() -> std::string {
      BRAID_CHECK(i + 1 < argc, name, " must be followed by a value");
      return argv[++i];
    };
    if (name == "--op") options.bench.ops.push_back(value());
    else if (name == "--shape") options.bench.shapes.push_back(value());
    else if (name == "--json") options.json = value();
    else if (name == "--quick") options.bench.budget_ms = 50;
    else if (name == "--help") options.help = true;
    else braid::fail("unknown option ", name, "; see --help");
  }
  braid::cli::check_gpu_ops(options.bench.ops);
  return options;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const Options options = parse(argc, argv);
    if (options.help) {
      std::cout << kUsage;
      return 0;
    }
    braid::Context ctx = braid::cuda::make_context();
    const std::vector<braid::cli::GpuBenchRow> rows = braid::cli::bench_gpu(ctx, options.bench);
    if (!options.json.empty()) {
      std::ofstream file(options.json);
      file << braid::cli::to_json(ctx, rows);
      BRAID_CHECK(file.flush(), "--json: ", options.json, " could not be written");
    }
    const std::string failed = braid::cli::failures(rows);
    if (!failed.empty()) std::cerr << "braid_bench: " << failed << '\n';
    return failed.empty() ? 0 : 1;
  } catch (const braid::Error& error) {
    std::cerr << "braid_bench: " << error.what() << '\n';
    return 2;
  }
}
