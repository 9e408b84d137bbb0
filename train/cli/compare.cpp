#include "train/cli/compare.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <vector>

#include "core/context.h"

namespace braid::cli {
namespace {

constexpr int64_t kBlockTokens = 64;

/// What may become zero in this type.
double smallest_normal(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return std::numeric_limits<double>::min();
    case DType::f16:
      return std::ldexp(1, -24);  // its subnormal numbers are in common use
    default:
      return std::numeric_limits<float>::min();  // bfloat16's, too
  }
}

struct Sums {
  double negligible;
  double error = 0, reference = 0;
  int64_t count = 0;

  void add(double given, double expected) {
    const double difference = std::abs(given - expected) < negligible ? 0 : given - expected;
    error += difference * difference;
    reference += expected * expected;
    ++count;
  }
  double rms_error() const { return count ? std::sqrt(error / static_cast<double>(count)) : 0; }
  double rms_reference() const { return count ? std::sqrt(reference / static_cast<double>(count)) : 0; }
};

double relative(double error, double reference) { return reference == 0 ? error : error / reference; }

/// Larger, NaN being the largest of all.
bool worse(double a, double b) { return std::isnan(a) ? !std::isnan(b) : a > b; }

std::string block_name(TensorKind kind, const Shape& shape, int64_t row_block, int64_t column_block, int64_t columns) {
  if (kind == TensorKind::whole || shape.rank() == 0) return "all";
  std::string name;
  if (kind == TensorKind::states) {
    name = "sequence " + std::to_string(row_block);
  } else {
    const int64_t begin = row_block * kBlockTokens;
    name = "tokens " + std::to_string(begin) + "-" + std::to_string(std::min(shape[0], begin + kBlockTokens) - 1);
  }
  if (shape.rank() < 2) return name;
  if (columns == 1) return name + ", head " + std::to_string(column_block);
  const int64_t begin = column_block * columns;
  return name + ", columns " + std::to_string(begin) + "-" + std::to_string(std::min(shape[1], begin + columns) - 1);
}

}  // namespace

TensorKind kind_of(const std::string& name, const Shape& shape) {
  const std::string base = name.starts_with("d_") ? name.substr(2) : name;
  if (base == "initial_state" || base == "final_state") return TensorKind::states;
  return base == "weight" || shape.rank() < 2 ? TensorKind::whole : TensorKind::tokens;
}

Comparison compare(Context& ctx, const Tensor& given, const Tensor& reference, TensorKind kind, int64_t columns_per_head) {
  const Shape& shape = reference.shape();
  const std::vector<double> a = to_vector<double>(ctx, given), b = to_vector<double>(ctx, reference);
  const bool blocks = kind != TensorKind::whole && shape.rank() >= 1;
  const int64_t rows_per_block = !blocks ? std::numeric_limits<int64_t>::max() : kind == TensorKind::states ? 1 : kBlockTokens;
  const int64_t columns = blocks && shape.rank() >= 2 ? shape[1] : 1;
  const int64_t columns_per_block = blocks ? columns_per_head : 1;
  const int64_t rows = blocks ? shape[0] : 1;
  const int64_t inner = rows * columns == 0 ? 0 : shape.numel() / (rows * columns);
  const Sums none{.negligible = smallest_normal(given.dtype())};
  Sums all = none;
  std::map<std::pair<int64_t, int64_t>, Sums> by_block;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t column = 0; column < columns; ++column) {
      Sums& block = by_block.try_emplace({row / rows_per_block, column / columns_per_block}, none).first->second;
      const int64_t begin = (row * columns + column) * inner;
      for (int64_t i = begin; i < begin + inner; ++i) {
        all.add(a[i], b[i]);
        block.add(a[i], b[i]);
      }
    }
  }
  Comparison result;
  result.error = relative(all.rms_error(), all.rms_reference());
  result.worst_block = "none";
  bool first = true;
  for (const auto& [where, sums] : by_block) {
    const double error = relative(sums.rms_error(), std::max(sums.rms_reference(), 0.1 * all.rms_reference()));
    if (!first && !worse(error, result.worst_block_error)) continue;
    first = false;
    result.worst_block_error = error;
    result.worst_block = block_name(kind, shape, where.first, where.second, columns_per_head);
  }
  return result;
}

}  // namespace braid::cli
