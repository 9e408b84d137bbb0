// Run-time values turned into compile-time constants.
#pragma once
#include <sstream>
#include <string_view>

#include "core/dtype.h"
#include "core/error.h"

namespace braid {

/// dispatch_dim<64, 128>("gated_delta_rule", "K", K, [&]<int D>() { … }): a miss lists what is built.
template <int... Built, class Body>
void dispatch_dim(std::string_view op, std::string_view what, int64_t value, Body&& body) {
  const bool hit = ((value == Built && (body.template operator()<Built>(), true)) || ...);
  if (hit) return;
  std::ostringstream built;
  built.imbue(std::locale::classic());
  ((built << ' ' << Built), ...);
  fail(op, ": ", what, " = ", value, " is not built; built:", built.str());
}

/// dispatch_real(name, dtype, [&]<class T>() { … }): T is double or float, the scalars CPU operators are written for.
template <class Body>
decltype(auto) dispatch_real(std::string_view op, DType dtype, Body&& body) {
  if (dtype == DType::f64) return body.template operator()<double>();
  BRAID_CHECK(dtype == DType::f32, op, ": expected f32 or f64, got ", dtype);
  return body.template operator()<float>();
}

}  // namespace braid
