// Matrix products through cuBLASLt.
#pragma once
#include "core/context.h"

namespace braid::cuda {

/// c [m, n] = a [m, k] · b [k, n] (+ c), row-major; transpose_a: a is stored [k, m]; transpose_b: b is stored [n, k]. Accumulated in
/// float32. a and b share a dtype (bf16, f32 or f64); c is of that dtype or f32.
/// Heuristics are asked once per shape and cached; float32 products use full float32 arithmetic.
struct Product {
  bool transpose_a = false, transpose_b = false, add = false;
  int64_t m = 0, n = 0, k = 0;
};
void multiply(Context& ctx, const Product& product, const Tensor& a, const Tensor& b, const Tensor& c);

/// The first heuristic of a process takes cuBLASLt a tenth of a second. This asks for one on a thread of its own; the first product waits for the
/// rest of it, if there is any. Only the first call does something.
void prepare_products(int device_index);

}  // namespace braid::cuda
