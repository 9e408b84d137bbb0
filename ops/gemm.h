// General matrix product on the CPU, for the operators that need one.
#pragma once
#include "core/context.h"

namespace braid {

/// c = alpha · op(a) · op(b) + beta · c, all row-major; op transposes where asked. With m, n, k the sizes after op:
/// a is [m, k] (transposed: [k, m]) with rows lda apart, b is [k, n] (transposed: [n, k]) with rows ldb apart, c is [m, n] with rows
/// ldc apart. With beta = 0 c is only written (it may hold NaN). c must not overlap a or b.
///
/// All threads of the context are used; how the work is cut depends on m, n, k and the transposes only, so the bits do not depend on
/// the number of threads. Called from inside a parallel_for body it runs on that body's thread. T: float or double.
template <class T>
void gemm(Context& ctx, bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, T alpha, const T* a, int64_t lda, const T* b,
          int64_t ldb, T beta, T* c, int64_t ldc);

}  // namespace braid
