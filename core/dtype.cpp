#include "core/dtype.h"

#include <cmath>

namespace braid {

DType parse_compute_dtype(std::string_view what, std::string_view text) {
  for (DType dtype : {DType::f64, DType::f32, DType::bf16})
    if (text == to_string(dtype)) return dtype;
  fail(what, ": expected f64, f32 or bf16, got '", text, "'");
}

f16::operator float() const {
  const int sign = bits >> 15, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  float magnitude = 0;
  if (exponent == 31) magnitude = fraction ? NAN : INFINITY;
  else if (exponent == 0) magnitude = std::ldexp(static_cast<float>(fraction), -24);
  else magnitude = std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
  return sign ? -magnitude : magnitude;
}

}  // namespace braid
