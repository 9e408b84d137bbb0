// Operators as bench times them: one typical call each.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "core/context.h"

namespace braid::cli {

/// One call of an operator. Costs are counted: each input read once, each output written once; a multiply-add is two operations.
struct BenchCase {
  std::string op, shape;
  int64_t num_tokens = 0;
  double forward_bytes = 0, backward_bytes = 0;
  double forward_flops = 0, backward_flops = 0;
  int64_t result_bytes = 0;  // outputs and gradients: what forward_backward must allocate
  std::function<void(Context&)> forward;
  std::function<void(Context&)> forward_backward;
};

/// Every operator of the table, float32, 2048 tokens.
std::vector<BenchCase> operator_cases(Context& ctx);

/// The recurrences with K = V = 64 and one sequence of 2048 tokens, in both forms.
struct FormPair {
  std::string op, decay;
  BenchCase chunked, token;
};
std::vector<FormPair> recurrence_pairs(Context& ctx);

/// Most memory of tensors at once during a call, above what was held before.
int64_t peak_bytes_above(const std::function<void()>& body);

/// Milliseconds of one call: the best of as many as fit into `budget_ms`, at least two after one to warm up.
double time_ms(const std::function<void()>& body, double budget_ms);

}  // namespace braid::cli
