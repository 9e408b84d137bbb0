// What this CPU can do, measured: the two ceilings under which every operator stays.
#pragma once
#include "core/context.h"

namespace braid::cli {

/// Floating-point operations per second of one large float32 product on all threads of the context: the best of as many as take a quarter of a
/// second.
double gemm_flops_per_second(Context& ctx, int64_t size = 512, int repeats = 5);
/// Bytes read plus bytes written per second by a copy too large for the caches, on all threads.
double copy_bytes_per_second(Context& ctx);
/// Seconds of one product of two float32 size × size matrices by Eigen on one thread.
double eigen_gemm_seconds(int64_t size, int repeats = 3);

}  // namespace braid::cli
