// Decays from their logarithms.
#pragma once
#include <limits>

#include "ops/eigen.h"

namespace braid {

/// values ← e^values, and 0 where that is less than any normal number: there Eigen's exp stops at such a small one on some processors.
template <class T>
void exponentiate(T* values, int64_t count) {
  array(values, count) = array(values, count).exp();
  for (int64_t i = 0; i < count; ++i) values[i] = values[i] < std::numeric_limits<T>::min() ? T(0) : values[i];
}

}  // namespace braid
