// Random tensors for tests.
#pragma once
#include "core/context.h"

namespace braid::testing {

/// f64 values uniform in [low, high), on the CPU.
Tensor uniform(Context& ctx, Random& random, const Shape& shape, double low = -1, double high = 1);
/// f64 values, standard normal times `scale`.
Tensor normal(Context& ctx, Random& random, const Shape& shape, double scale = 1);

/// rms(a − b) / rms(b) over all elements (0 / 0 is 0; NaN anywhere gives infinity).
double relative_error(Context& ctx, const Tensor& a, const Tensor& b);
/// True when shapes, dtypes and every bit are the same.
bool same_bits(Context& ctx, const Tensor& a, const Tensor& b);
/// True when no element is NaN or infinite.
bool all_finite(Context& ctx, const Tensor& tensor);

}  // namespace braid::testing
