// The tensor-core paths: bf16, D = DV of 64, 128 or 256, a positive scale. What they do not take goes to plain.h.
#pragma once
#include "core/context.h"
#include "cuda/kernels/attention/path.h"
#include "cuda/kernels/attention/problem.h"

namespace braid::attention {

inline bool aligned(const Problem& problem) {
  const auto is_aligned = [](const void* address) { return reinterpret_cast<uintptr_t>(address) % 16 == 0; };
  return is_aligned(problem.q) && is_aligned(problem.k) && is_aligned(problem.v) && is_aligned(problem.o) && is_aligned(problem.d_o);
}

inline Path path_for(const Problem& problem, bool on_hopper) {
  const bool dim = problem.D == 64 || problem.D == 128 || problem.D == 256;
  if (!problem.is_bf16 || !dim || problem.D != problem.DV || !(problem.scale > 0) || !aligned(problem)) return Path::plain;
  constexpr int64_t kMaxTokens = int64_t{1} << 31;  // coordinates of the copy engine
  return on_hopper && problem.Nq < kMaxTokens && problem.Nk < kMaxTokens ? Path::hopper : Path::mma;
}

/// `mma.sync`: sm_80 and later.
void mma_forward(Context& ctx, const Problem& problem);
/// Needs d_o and stats.
void mma_backward(Context& ctx, const Problem& problem);

/// TMA and `wgmma`: a GPU of compute capability 9.0.
void hopper_forward(Context& ctx, const Problem& problem);
/// Needs d_o and stats.
void hopper_backward(Context& ctx, const Problem& problem);
/// Whether this build has sm_90a code and the current device runs it.
bool built_for_hopper();

/// Queries of a block of the decoding path: with all heads of their group they fill 16 rows. 0: the group is too large.
inline int decode_queries(const Problem& problem) { return static_cast<int>(16 / (problem.H / problem.HK)); }
/// Few queries, many keys: the keys are split over blocks and the parts joined in their order. For paths mma and hopper.
inline bool decode_takes(const Problem& problem, int64_t max_queries) { return max_queries <= 4 * decode_queries(problem); }
void decode_forward(Context& ctx, const Problem& problem, int64_t max_keys);

/// stats from o, d_o, lse and d_lse (or null).
void launch_stats(Context& ctx, const Problem& problem, const float* d_lse, float2* stats);

}  // namespace braid::attention
