#include "ops/gemm.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "tests/support/laws.h"

namespace braid::testing {
namespace {

struct Product {
  bool transpose_a, transpose_b;
  int64_t m, n, k;
  double alpha, beta;
};

/// Storage with padding after each row, which gemm must neither read as values nor write.
template <class T>
struct Padded {
  int64_t stride;
  std::vector<T> values;
  Padded(Random& random, int64_t rows, int64_t cols, int64_t pad) : stride(cols + pad), values(rows * stride) {
    for (T& value : values) value = static_cast<T>(random.uniform(-1, 1));
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t col = cols; col < stride; ++col) values[row * stride + col] = std::numeric_limits<T>::quiet_NaN();
  }
  double at(bool transposed, int64_t row, int64_t col) const {
    return static_cast<double>(values[transposed ? col * stride + row : row * stride + col]);
  }
};

template <class T>
std::vector<T> run(int num_threads, const Product& p, const Padded<T>& a, const Padded<T>& b, const Padded<T>& c) {
  Context ctx(num_threads);
  std::vector<T> result = c.values;
  gemm<T>(ctx, p.transpose_a, p.transpose_b, p.m, p.n, p.k, static_cast<T>(p.alpha), a.values.data(), a.stride, b.values.data(), b.stride,
          static_cast<T>(p.beta), result.data(), c.stride);
  return result;
}

template <class T>
void expect_product(const Product& p) {
  SCOPED_TRACE(::testing::Message() << p.transpose_a << p.transpose_b << " " << p.m << "x" << p.n << "x" << p.k << " beta " << p.beta);
  Random random(static_cast<uint64_t>(p.m * 1000003 + p.n * 1009 + p.k));
  const Padded<T> a(random, p.transpose_a ? p.k : p.m, p.transpose_a ? p.m : p.k, 3);
  const Padded<T> b(random, p.transpose_b ? p.n : p.k, p.transpose_b ? p.k : p.n, 5);
  Padded<T> c(random, p.m, p.n, 2);
  if (p.beta == 0) std::fill(c.values.begin(), c.values.end(), std::numeric_limits<T>::quiet_NaN());
  const std::vector<T> result = run<T>(1, p, a, b, c);
  const std::vector<T> again = run<T>(3, p, a, b, c);
  EXPECT_TRUE(result.empty() || std::memcmp(result.data(), again.data(), result.size() * sizeof(T)) == 0) << "bits depend on threads";
  double worst = 0;
  for (int64_t i = 0; i < p.m; ++i) {
    for (int64_t j = 0; j < p.n; ++j) {
      long double sum = 0;
      for (int64_t q = 0; q < p.k; ++q) sum += static_cast<long double>(a.at(p.transpose_a, i, q)) * b.at(p.transpose_b, q, j);
      const double expected = p.alpha * static_cast<double>(sum) + (p.beta == 0 ? 0 : p.beta * c.at(false, i, j));
      const double error = std::abs(static_cast<double>(result[i * c.stride + j]) - expected);
      worst = std::isnan(error) ? std::numeric_limits<double>::infinity() : std::max(worst, error);
    }
    for (int64_t j = p.n; j < c.stride; ++j) EXPECT_TRUE(std::isnan(result[i * c.stride + j])) << "padding was written";
  }
  EXPECT_LE(worst, std::numeric_limits<T>::epsilon() * 4 * static_cast<double>(p.k + 8));
}

template <class T>
void expect_products_of_odd_sizes() {
  const std::vector<int64_t> sizes = {0, 1, 7, 63, 64, 65, 129};
  int turn = 0;
  for (int64_t m : sizes)
    for (int64_t n : sizes)
      for (int64_t k : sizes)
        for (int transposes = 0; transposes < 4; ++transposes) {
          const double betas[] = {0, 1, -0.5};
          expect_product<T>({(transposes & 1) != 0, (transposes & 2) != 0, m, n, k, turn % 2 ? 1.0 : 1.5, betas[turn % 3]});
          ++turn;
        }
}

TEST(Gemm, IsTheNaiveProductF32) { expect_products_of_odd_sizes<float>(); }
TEST(Gemm, IsTheNaiveProductF64) { expect_products_of_odd_sizes<double>(); }

/// Sizes at which the work is cut along rows, columns and depth, with ragged ends.
TEST(Gemm, IsTheNaiveProductWhenCut) {
  const Product products[] = {{false, false, 600, 70, 65, 1, 0},  {true, false, 67, 61, 2100, 1, 1},   {true, false, 50, 64, 1500, 2, -0.5},
                              {false, true, 16, 700, 300, 1, 1},  {false, true, 5, 1301, 130, 1.5, 0}, {false, true, 1, 2000, 1037, 1, 0},
                              {false, false, 9, 1100, 200, 1, 1}, {true, true, 130, 1100, 40, 1, 0},   {false, true, 140, 1, 9000, 1, 0}};
  for (const Product& product : products) {
    expect_product<float>(product);
    expect_product<double>(product);
  }
}

TEST(Gemm, RunsInsideABody) {
  Context ctx(2);
  Random random(1);
  const Padded<double> a(random, 100, 100, 0), b(random, 100, 100, 0);
  std::vector<double> c(4 * 10000);
  ctx.parallel_for(4, 1, [&](int64_t i, int64_t) {
    gemm<double>(ctx, false, false, 100, 100, 100, 1.0, a.values.data(), 100, b.values.data(), 100, 0.0, c.data() + i * 10000, 100);
  });
  for (int i = 1; i < 4; ++i) EXPECT_EQ(std::memcmp(c.data(), c.data() + i * 10000, 10000 * sizeof(double)), 0);
}

}  // namespace
}  // namespace braid::testing
