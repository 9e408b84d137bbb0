// What is timed on a GPU: one list of operators and shapes, for `braid bench --device cuda` and for tests/bench.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "core/context.h"
#include "core/sequences.h"

namespace braid::cli {

/// Counted, not measured: each input read once, each output written once; a multiply-add is two operations. The backward's inputs are the
/// forward's and the gradient of its first output.
struct GpuCost {
  double forward_bytes = 0, backward_bytes = 0;
  double forward_flops = 0, backward_flops = 0;
};

/// A case with its inputs in memory, in as many copies as it takes to push each other out of the L2 cache.
struct GpuRun {
  GpuCost cost;
  int copies = 1;
  int64_t output_bytes = 0, gradient_bytes = 0;                  // what the calls below must allocate
  std::function<void(Context&, int copy)> forward;               // no tape
  std::function<void(Context&, int copy)> forward_and_backward;  // empty: there is no backward
};

struct GpuCase {
  std::string op, shape;
  std::function<GpuRun(Context&)> make;
};

/// 32,768 tokens: dense, as one sequence, and as documents of 1 to 11,131 tokens.
struct Split {
  std::string name;
  Sequences seqs;
};
std::vector<Split> token_splits();

std::vector<GpuCase> recurrence_cases();
std::vector<GpuCase> attention_cases();
std::vector<GpuCase> step_cases();     // one token of each sequence, as decoding has it: forward only
std::vector<GpuCase> row_cases();      // everything bound by memory, the linear layer, and the one with its loss
std::vector<GpuCase> ceiling_cases();  // device_copy and matrix_product: what the chip gives at most
/// All of these.
std::vector<GpuCase> gpu_cases();

}  // namespace braid::cli
