// Times the cases on a GPU and prints them beside their floor.
#pragma once
#include <string>
#include <vector>

#include "core/context.h"

namespace braid::cli {

/// The chip all floors are counted for (design: one H100 80GB): a device copy and a bf16 8192³ product.
inline constexpr double kFloorBytesPerSecond = 3.02e12, kFloorFlopsPerSecond = 803e12;

struct GpuBenchOptions {
  std::vector<std::string> ops;     // none: all
  std::vector<std::string> shapes;  // parts of a shape's name that must all be in it
  double budget_ms = 300;           // for each number; at least three runs
};

struct GpuBenchRow {
  std::string op, shape, error;        // `error`: the case failed, and there are no numbers
  double forward_ms = 0, both_ms = 0;  // medians; both: forward and backward, 0 where there is no backward
  int runs = 0;                        // that the last median is of
  double bytes = 0, flops = 0;         // counted, forward and backward
  double forward_floor_ms = 0, both_floor_ms = 0;
  int64_t extra_bytes = 0;  // most memory at once above inputs, outputs and gradients
};

/// Throws Error when an operator's name is not one of the list.
void check_gpu_ops(const std::vector<std::string>& ops);
/// Runs every case that is asked for, printing its row when it is done.
std::vector<GpuBenchRow> bench_gpu(Context& ctx, const GpuBenchOptions& options);
/// "2 of 40 cases failed, first OP, SHAPE: ERROR", or nothing when all ran.
std::string failures(const std::vector<GpuBenchRow>& rows);
/// The rows and the device's name as JSON text.
std::string to_json(Context& ctx, const std::vector<GpuBenchRow>& rows);

}  // namespace braid::cli
