#include "train/cli/bench_gpu/bench_gpu.h"

#include <algorithm>
#include <cstdio>
#include <deque>
#include <sstream>

#include "core/error.h"
#include "cuda/runtime/runtime.h"
#include "train/cli/bench_gpu/cases.h"

namespace braid::cli {
namespace {

constexpr int kMostRuns = 50;

struct Timing {
  double median_ms = 0;
  int runs = 0;
};

/// Milliseconds between two events around one call.
double timed_once(Context& ctx, const std::function<void(Context&, int)>& body, int copy) {
  cuda::Event begin, end;
  begin.record(ctx.stream());
  body(ctx, copy);
  end.record(ctx.stream());
  end.synchronize();
  return cuda::Event::elapsed_ms(begin, end);
}

/// The first call pays for code loading and plans; the second says how many fit into the budget. Then the device is kept busy while the
/// host gets ahead, so that a short call's time is not the time of launching it.
Timing time_case(Context& ctx, const std::function<void(Context&, int)>& body, int copies, double budget_ms, const Tensor& filler) {
  const double first = timed_once(ctx, body, 0);
  if (first > 10 * budget_ms) return {timed_once(ctx, body, 1 % copies), 1};
  const double once = timed_once(ctx, body, 1 % copies);
  const int runs = std::clamp(static_cast<int>(budget_ms / once), 3, kMostRuns);
  std::deque<cuda::Event> events(2 * runs);
  for (int i = 0; i < 20; ++i) fill_zero(ctx, filler);
  for (int i = 0; i < runs; ++i) {
    events[2 * i].record(ctx.stream());
    body(ctx, (i + 2) % copies);
    events[2 * i + 1].record(ctx.stream());
  }
  ctx.synchronize();
  std::vector<double> times;
  for (int i = 0; i < runs; ++i) times.push_back(cuda::Event::elapsed_ms(events[2 * i], events[2 * i + 1]));
  std::sort(times.begin(), times.end());
  return {(times[(runs - 1) / 2] + times[runs / 2]) / 2, runs};
}

/// Most memory at once during a call, above what was held before.
int64_t peak_above(Context& ctx, const std::function<void(Context&, int)>& body) {
  const int device = ctx.device().index;
  ctx.synchronize();
  cuda::reset_peak_memory(device);
  const int64_t before = cuda::memory_use(device).used_bytes;
  body(ctx, 0);
  ctx.synchronize();
  return cuda::memory_use(device).peak_bytes - before;
}

double floor_ms(double bytes, double flops) { return 1e3 * std::max(bytes / kFloorBytesPerSecond, flops / kFloorFlopsPerSecond); }

GpuBenchRow run_case(Context& ctx, const GpuCase& c, double budget_ms, const Tensor& filler) {
  GpuBenchRow row;
  row.op = c.op, row.shape = c.shape;
  try {
    const GpuRun run = c.make(ctx);
    const GpuCost& cost = run.cost;
    const bool both = static_cast<bool>(run.forward_and_backward);
    row.bytes = cost.forward_bytes + cost.backward_bytes, row.flops = cost.forward_flops + cost.backward_flops;
    row.forward_floor_ms = floor_ms(cost.forward_bytes, cost.forward_flops);
    Timing timing = time_case(ctx, run.forward, run.copies, budget_ms, filler);
    row.forward_ms = timing.median_ms;
    if (both) {
      row.both_floor_ms = row.forward_floor_ms + floor_ms(cost.backward_bytes, cost.backward_flops);
      timing = time_case(ctx, run.forward_and_backward, run.copies, budget_ms, filler);
      row.both_ms = timing.median_ms;
    }
    row.runs = timing.runs;
    const int64_t needed = run.output_bytes + (both ? run.gradient_bytes : 0);
    row.extra_bytes = std::max<int64_t>(0, peak_above(ctx, both ? run.forward_and_backward : run.forward) - needed);
  } catch (const Error& error) {
    row.error = error.what();
  }
  return row;
}

void print_heading() {
  std::printf("%-23s %-48s %9s %8s %8s | %9s %8s %8s %9s %9s %9s\n", "operator", "shape", "fwd ms", "floor", "x floor", "f+b ms", "floor", "x floor",
              "GB", "TFLOP", "extra MB");
}

void print_row(const GpuBenchRow& row) {
  std::printf("%-23s %-48s ", row.op.c_str(), row.shape.c_str());
  if (!row.error.empty()) {
    std::printf("FAILED: %s\n", row.error.c_str());
  } else {
    std::printf("%9.4f %8.4f %8.2f | ", row.forward_ms, row.forward_floor_ms, row.forward_ms / row.forward_floor_ms);
    if (row.both_ms > 0) std::printf("%9.4f %8.4f %8.2f ", row.both_ms, row.both_floor_ms, row.both_ms / row.both_floor_ms);
    else std::printf("%9s %8s %8s ", "-", "-", "-");
    std::printf("%9.3f %9.3f %9.1f\n", row.bytes / 1e9, row.flops / 1e12, static_cast<double>(row.extra_bytes) / 1e6);
  }
  std::fflush(stdout);
}

bool wanted(const GpuBenchOptions& options, const GpuCase& c) {
  if (!options.ops.empty() && std::find(options.ops.begin(), options.ops.end(), c.op) == options.ops.end()) return false;
  return std::all_of(options.shapes.begin(), options.shapes.end(), [&](const std::string& part) { return c.shape.find(part) != std::string::npos; });
}

std::string quoted(const std::string& text) {
  std::string result = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') result += '\\';
    result += static_cast<unsigned char>(c) < 32 ? ' ' : c;
  }
  return result + '"';
}

}  // namespace

void check_gpu_ops(const std::vector<std::string>& ops) {
  std::vector<std::string> known;
  for (const GpuCase& c : gpu_cases())
    if (std::find(known.begin(), known.end(), c.op) == known.end()) known.push_back(c.op);
  std::string names;
  for (const std::string& name : known) names += (names.empty() ? "" : ", ") + name;
  for (const std::string& op : ops)
    BRAID_CHECK(std::find(known.begin(), known.end(), op) != known.end(), "--op must be one of ", names, ", got ", op);
}

std::vector<GpuBenchRow> bench_gpu(Context& ctx, const GpuBenchOptions& options) {
  std::printf("%s; floor: max(bytes / %.2f TB/s, flop / %.0f TFLOP/s), each input read once and each output written once\n",
              cuda::facts(ctx.device().index).name.c_str(), kFloorBytesPerSecond / 1e12, kFloorFlopsPerSecond / 1e12);
  print_heading();
  const Tensor filler = Tensor::empty(ctx, {1 << 28}, DType::u8);
  std::vector<GpuBenchRow> rows;
  for (const GpuCase& c : gpu_cases()) {
    if (!wanted(options, c)) continue;
    rows.push_back(run_case(ctx, c, options.budget_ms, filler));
    print_row(rows.back());
  }
  return rows;
}

std::string failures(const std::vector<GpuBenchRow>& rows) {
  const auto failed = [](const GpuBenchRow& row) { return !row.error.empty(); };
  const auto first = std::find_if(rows.begin(), rows.end(), failed);
  if (first == rows.end()) return "";
  return std::to_string(std::count_if(rows.begin(), rows.end(), failed)) + " of " + std::to_string(rows.size()) + " cases failed, first " +
         first->op + ", " + first->shape + ": " + first->error;
}

std::string to_json(Context& ctx, const std::vector<GpuBenchRow>& rows) {
  std::ostringstream out;
  out.imbue(std::locale::classic());
  out.precision(15);  // bytes and operations are counts
  out << "{\"device\": " << quoted(cuda::facts(ctx.device().index).name) << ", \"floor_bytes_per_s\": " << kFloorBytesPerSecond
      << ", \"floor_flops_per_s\": " << kFloorFlopsPerSecond << ", \"operators\": [";
  for (size_t i = 0; i < rows.size(); ++i) {
    const GpuBenchRow& row = rows[i];
    out << (i ? ",\n" : "\n") << "{\"op\": " << quoted(row.op) << ", \"shape\": " << quoted(row.shape);
    if (!row.error.empty()) {
      out << ", \"error\": " << quoted(row.error) << '}';
      continue;
    }
    out << ", \"forward_ms\": " << row.forward_ms << ", \"forward_floor_ms\": " << row.forward_floor_ms
        << ", \"forward_x_floor\": " << row.forward_ms / row.forward_floor_ms;
    if (row.both_ms > 0)
      out << ", \"forward_backward_ms\": " << row.both_ms << ", \"forward_backward_floor_ms\": " << row.both_floor_ms
          << ", \"forward_backward_x_floor\": " << row.both_ms / row.both_floor_ms;
    out << ", \"bytes\": " << row.bytes << ", \"flops\": " << row.flops << ", \"extra_bytes\": " << row.extra_bytes << ", \"runs\": " << row.runs
        << '}';
  }
  out << "\n]}\n";
  return out.str();
}

}  // namespace braid::cli
