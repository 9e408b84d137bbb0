// The clock of the chip while a stream's work runs: GPUs change it by load and heat, and times change with it.
#pragma once
#include <vector>

#include "core/context.h"

namespace braid::cuda {

/// Points in a stream's work at which every multiprocessor's count of cycles and the time are remembered. Nothing waits for them.
class ClockMarks {
 public:
  ClockMarks(Context& ctx, int64_t most_marks);
  void mark(Context& ctx);
  /// Millions of cycles a second, from each mark to the next; waits for the last.
  std::vector<double> mhz(Context& ctx) const;

 private:
  int64_t num_multiprocessors_, num_marks_ = 0;
  Tensor marks_;  // i64 [marks, multiprocessors, 2]: cycles, nanoseconds; 0 where nothing ran
};

}  // namespace braid::cuda
