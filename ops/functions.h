// Stable elementwise functions for the host and for kernels.
//
// T is a float, a double, or the host's vector of lanes (ops/lanes.h), which brings its own minimum, maximum, exp, log1p, tanh, abs.
#pragma once
#include <cmath>
#include <type_traits>

#include "ops/host_device.h"

namespace braid {
namespace functions {

using std::abs;
using std::exp;
using std::log1p;
using std::tanh;

template <class T>
requires std::is_floating_point_v<T> BRAID_HOST_DEVICE T minimum(T a, T b) { return a < b ? a : b; }
template <class T>
requires std::is_floating_point_v<T> BRAID_HOST_DEVICE T maximum(T a, T b) { return a > b ? a : b; }

template <class T>
BRAID_HOST_DEVICE T exponential(T x) {
  return exp(x);
}
template <class T>
BRAID_HOST_DEVICE T hyperbolic_tangent(T x) {
  return tanh(x);
}

/// 1 / (1 + e^−x): a large e^−x ends in 0, never in infinity divided by infinity.
template <class T>
BRAID_HOST_DEVICE T sigmoid(T x) {
  return T(1) / (T(1) + exp(-x));
}
/// log(1 + e^x).
template <class T>
BRAID_HOST_DEVICE T softplus(T x) {
  return maximum(x, T(0)) + log1p(exp(-abs(x)));
}
/// log(sigmoid(x)).
template <class T>
BRAID_HOST_DEVICE T log_sigmoid(T x) {
  return minimum(x, T(0)) - log1p(exp(-abs(x)));
}
template <class T>
BRAID_HOST_DEVICE T silu(T x) {
  return x * sigmoid(x);
}
template <class T>
BRAID_HOST_DEVICE T silu_slope(T x) {
  const T s = sigmoid(x);
  return s + x * s * (T(1) - s);
}

}  // namespace functions

}  // namespace braid
