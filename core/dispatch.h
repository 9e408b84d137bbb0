// Run-time types turned into compile-time ones.
#pragma once
#include <string_view>

#include "core/dtype.h"
#include "core/error.h"

namespace braid {

/// dispatch_real(name, dtype, [&]<class T>() { … }): T is double or float, the scalars CPU operators are written for.
template <class Body>
decltype(auto) dispatch_real(std::string_view op, DType dtype, Body&& body) {
  if (dtype == DType::f64) return body.template operator()<double>();
  BRAID_CHECK(dtype == DType::f32, op, ": expected f32 or f64, got ", dtype);
  return body.template operator()<float>();
}

}  // namespace braid
