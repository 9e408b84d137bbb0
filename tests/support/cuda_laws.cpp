#include "tests/support/cuda_laws.h"

#include <algorithm>
#include <cmath>

namespace braid::testing {

double worst_block_error(Context& ctx, const Tensor& actual, const Tensor& expected, BlockKind kind) {
  const int rank = expected.rank();
  if (rank < 2 || expected.numel() == 0) return 0;
  const std::vector<double> x = to_vector<double>(ctx, actual), y = to_vector<double>(ctx, expected);
  const bool by_head = rank >= 3 || kind == BlockKind::gate;
  const int64_t rows = expected.size(0), heads = by_head ? expected.size(1) : 1, rows_a_block = rank == 4 ? 1 : 64;
  const int64_t width = expected.numel() / rows / heads;
  double total = 0;
  for (double value : y) total += value * value;
  const double floor = 0.25 * std::sqrt(total / static_cast<double>(y.size()));
  double worst = 0;
  for (int64_t begin = 0; begin < rows; begin += rows_a_block) {
    for (int64_t head = 0; head < heads; ++head) {
      double error = 0, norm = 0;
      const int64_t end = std::min(rows, begin + rows_a_block);
      for (int64_t row = begin; row < end; ++row) {
        for (int64_t i = 0; i < width; ++i) {
          const int64_t at = (row * heads + head) * width + i;
          error += (x[at] - y[at]) * (x[at] - y[at]);
          norm += y[at] * y[at];
        }
      }
      const double count = static_cast<double>((end - begin) * width);
      const double ratio = error == 0 ? 0 : std::sqrt(error / count) / std::max(floor, std::sqrt(norm / count));
      worst = ratio <= worst ? worst : ratio;  // a NaN is kept
    }
  }
  return worst;
}

}  // namespace braid::testing
