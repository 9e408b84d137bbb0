#include "train/cli/cpu_speed.h"

#include <Eigen/Core>
#include <algorithm>
#include <chrono>
#include <cstring>
#include <limits>
#include <vector>

#include "ops/gemm.h"

namespace braid::cli {
namespace {

constexpr double kLeastSeconds = 0.25;  // of products

/// The fastest of at least `repeats` and of as many as take `least_seconds`: a program's threads may share one core for the first tenths of a second.
template <class Body>
double best_seconds(int repeats, double least_seconds, Body&& body) {
  double best = std::numeric_limits<double>::infinity(), spent = 0;
  for (int i = 0; i <= repeats || spent < least_seconds; ++i) {
    const auto start = std::chrono::steady_clock::now();
    body();
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    spent += seconds;
    if (i > 0) best = std::min(best, seconds);  // the first one warms up
  }
  return best;
}

std::vector<float> some_values(int64_t count) {
  Random random(7);
  std::vector<float> values(count);
  for (float& value : values) value = static_cast<float>(random.uniform(-1, 1));
  return values;
}

}  // namespace

double gemm_flops_per_second(Context& ctx, int64_t size, int repeats) {
  const std::vector<float> a = some_values(size * size), b = some_values(size * size);
  std::vector<float> c(size * size);
  const double seconds = best_seconds(
      repeats, kLeastSeconds, [&] { gemm<float>(ctx, false, false, size, size, size, 1.0f, a.data(), size, b.data(), size, 0.0f, c.data(), size); });
  return 2.0 * static_cast<double>(size * size * size) / seconds;
}

double copy_bytes_per_second(Context& ctx) {
  constexpr int64_t kBytes = int64_t{1} << 28, kGrain = int64_t{1} << 22;
  const std::vector<char> from(kBytes, 1);
  std::vector<char> to(kBytes, 2);
  const double seconds = best_seconds(3, 0, [&] {
    ctx.parallel_for(kBytes, kGrain, [&](int64_t begin, int64_t end) { std::memcpy(to.data() + begin, from.data() + begin, end - begin); });
  });
  return 2.0 * static_cast<double>(kBytes) / seconds;
}

double eigen_gemm_seconds(int64_t size, int repeats) {
  using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  const Matrix a = Matrix::Random(size, size), b = Matrix::Random(size, size);
  Matrix c(size, size);
  return best_seconds(repeats, kLeastSeconds, [&] { c.noalias() = a * b; });
}

}  // namespace braid::cli
