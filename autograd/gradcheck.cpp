#include "autograd/gradcheck.h"

#include <algorithm>
#include <cmath>

namespace braid::detail {

double weighted_sum(Context& ctx, const Tensor& out, const Tensor& weight) {
  const std::vector<double> a = to_vector<double>(ctx, out), b = to_vector<double>(ctx, weight);
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

Tensor random_like(Context& ctx, const Tensor& tensor, Random& random) {
  std::vector<double> values(tensor.numel());
  for (double& value : values) value = random.uniform(-1, 1);
  return from_vector(ctx, values, tensor.shape());
}

namespace {

/// The central difference of `evaluate` along `direction`, which has a value for every element; restores the values.
double central_difference(double* values, const std::vector<double>& direction, double step, FunctionRef<void(double*)> evaluate) {
  const std::vector<double> before(values, values + direction.size());
  double plus = 0, minus = 0;
  for (size_t i = 0; i < direction.size(); ++i) values[i] = before[i] + step * direction[i];
  evaluate(&plus);
  for (size_t i = 0; i < direction.size(); ++i) values[i] = before[i] - step * direction[i];
  evaluate(&minus);
  std::copy(before.begin(), before.end(), values);
  return (plus - minus) / (2 * step);
}

}  // namespace

void check_input(Context& ctx, const GradcheckInput& input, const GradcheckOptions& options, Random& random, FunctionRef<void(double*)> evaluate,
                 GradcheckResult& result) {
  const int64_t n = input.value.numel();
  if (n == 0) return;
  std::vector<double> gradient(n, 0.0);
  if (input.gradient) gradient = to_vector<double>(ctx, input.gradient);
  double square = 0;
  for (double g : gradient) square += g * g;
  const double scale = std::max(std::sqrt(square / static_cast<double>(n)), 1e-3);

  const auto compare = [&](const std::vector<double>& direction, double norm, const std::string& where) {
    const double numeric = central_difference(input.value.data<double>(), direction, options.step, evaluate);
    double analytic = 0;
    for (int64_t i = 0; i < n; ++i) analytic += gradient[i] * direction[i];
    const double error = std::abs(numeric - analytic) / (scale * norm);
    if (!(error <= result.worst_error)) result.worst_error = error;
    if (error <= options.tolerance) return;
    result.passed = false;
    std::ostringstream message;
    message.imbue(std::locale::classic());
    message << input.op << ": d_" << input.input << " " << where << " is " << analytic << ", differences give " << numeric << " (error " << error
            << ")";
    result.message = message.str();
  };

  std::vector<double> direction(n);
  for (int64_t k = 0; k < std::min(n, options.max_elements); ++k) {
    const int64_t i = n <= options.max_elements ? k : static_cast<int64_t>(random.below(n));
    std::fill(direction.begin(), direction.end(), 0.0);
    direction[i] = std::max(1.0, std::abs(input.value.data<double>()[i]));
    compare(direction, direction[i], "[" + std::to_string(i) + "]");
  }
  for (double& d : direction) d = random.uniform() < 0.5 ? -1.0 : 1.0;
  compare(direction, std::sqrt(static_cast<double>(n)), "along a random direction");
}

}  // namespace braid::detail
