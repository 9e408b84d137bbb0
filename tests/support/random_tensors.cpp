#include "tests/support/random_tensors.h"

#include <cmath>
#include <cstring>
#include <limits>

namespace braid::testing {

Tensor uniform(Context& ctx, Random& random, const Shape& shape, double low, double high) {
  std::vector<double> values(shape.numel());
  for (double& value : values) value = random.uniform(low, high);
  return from_vector(ctx, values, shape);
}

Tensor normal(Context& ctx, Random& random, const Shape& shape, double scale) {
  std::vector<double> values(shape.numel());
  for (double& value : values) value = scale * random.normal();
  return from_vector(ctx, values, shape);
}

double relative_error(Context& ctx, const Tensor& a, const Tensor& b) {
  if (a.shape().numel() != b.shape().numel()) return std::numeric_limits<double>::infinity();
  const std::vector<double> x = to_vector<double>(ctx, a), y = to_vector<double>(ctx, b);
  double error = 0, norm = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    error += (x[i] - y[i]) * (x[i] - y[i]);
    norm += y[i] * y[i];
  }
  if (error == 0) return 0;
  const double ratio = std::sqrt(error / norm);
  return std::isnan(ratio) ? std::numeric_limits<double>::infinity() : ratio;
}

bool same_bits(Context& ctx, const Tensor& a, const Tensor& b) {
  if (a.defined() != b.defined()) return false;
  if (!a.defined()) return true;
  if (!(a.shape() == b.shape()) || a.dtype() != b.dtype()) return false;
  if (a.dtype() == DType::f64) {
    const auto x = to_vector<double>(ctx, a), y = to_vector<double>(ctx, b);
    return x.empty() || std::memcmp(x.data(), y.data(), x.size() * sizeof(double)) == 0;
  }
  const auto x = to_vector<float>(ctx, a), y = to_vector<float>(ctx, b);
  return x.empty() || std::memcmp(x.data(), y.data(), x.size() * sizeof(float)) == 0;
}

bool all_finite(Context& ctx, const Tensor& tensor) {
  for (double value : to_vector<double>(ctx, tensor))
    if (!std::isfinite(value)) return false;
  return true;
}

}  // namespace braid::testing
