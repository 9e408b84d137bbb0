#include "cuda/runtime/check.h"
#include "cuda/runtime/clock.h"
#include "cuda/runtime/runtime.h"

namespace braid::cuda {
namespace {

struct MarkParams {
  int64_t* mark;  // [multiprocessors, 2]
  int64_t num_multiprocessors;
};

__global__ void mark_kernel(MarkParams p) {
  uint32_t multiprocessor;
  uint64_t nanoseconds;
  asm volatile("mov.u32 %0, %%smid;" : "=r"(multiprocessor));
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(nanoseconds));
  if (multiprocessor >= p.num_multiprocessors) return;
  p.mark[2 * multiprocessor] = clock64();
  p.mark[2 * multiprocessor + 1] = static_cast<int64_t>(nanoseconds);
}

}  // namespace

ClockMarks::ClockMarks(Context& ctx, int64_t most_marks)
    : num_multiprocessors_(facts(ctx.device().index).num_multiprocessors),
      marks_(Tensor::zeros(ctx, {most_marks, num_multiprocessors_, 2}, DType::i64)) {}

void ClockMarks::mark(Context& ctx) {
  BRAID_CHECK(num_marks_ < marks_.size(0), "clock: there is room for ", marks_.size(0), " marks");
  const MarkParams params{marks_.data<int64_t>() + 2 * num_multiprocessors_ * num_marks_++, num_multiprocessors_};
  launch(ctx.stream(), "clock_mark", &mark_kernel, {.grid = static_cast<unsigned>(num_multiprocessors_), .block = 1}, params);
}

std::vector<double> ClockMarks::mhz(Context& ctx) const {
  const std::vector<int64_t> marks = to_vector<int64_t>(ctx, marks_);
  std::vector<double> result;
  for (int64_t i = 0; i + 1 < num_marks_; ++i) {
    const int64_t *begin = marks.data() + 2 * num_multiprocessors_ * i, *end = begin + 2 * num_multiprocessors_;
    double cycles = 0, nanoseconds = 0;
    for (int64_t at = 0; at < 2 * num_multiprocessors_; at += 2) {
      if (begin[at + 1] == 0 || end[at + 1] == 0) continue;
      cycles += static_cast<double>(end[at] - begin[at]);
      nanoseconds += static_cast<double>(end[at + 1] - begin[at + 1]);
    }
    result.push_back(nanoseconds > 0 ? 1e3 * cycles / nanoseconds : 0);
  }
  return result;
}

}  // namespace braid::cuda
