// Chunks of 64 tokens of packed sequences on tensor cores: what the kernels of gated_delta_rule share (README.md has the schedule).
//
// Chunk slots: sequence s owns slots begin(s) / 64 + s … end(s) / 64 + s, at least as many as it has chunks, so that a slot finds its
// sequence by search in cu_seqlens and no table is needed. Slots past a sequence's chunks stay unused.
#pragma once
#include "cuda/device/scalar.h"
#include "ops/recurrence/gated_delta_rule.h"

namespace braid::delta_cuda {

using device::bf16;

inline constexpr int kChunk = 64;
inline constexpr int kTileBytes = kChunk * kChunk * 2;  // of bf16

/// Rows of `factors`: what multiplies a token's row on its way in and out of a state. q and k are raw: their norms live here.
enum Factor : int {
  kLogDecay,  // g: log decay summed from the chunk's start, inclusive
  kKeyIn,     // exp(g) / |k|: reads the state before the chunk
  kKeyOut,    // exp(g_end − g) / |k|: is added to the state after it
  kQueryIn,   // scale exp(g) / |q|
  kBeta,
  kKeyNorm,      // 1 / |k|
  kQueryNorm,    // 1 / |q|
  kWrittenBeta,  // beta, or kLeastBeta: what U is made with
  kNumFactors
};
inline constexpr int kFactorBytes = kNumFactors * kChunk * 4;
/// U of a token is beta times e, what its v is off by, and d_beta = d_u · e: a beta of 0 must leave e's digits in U, which this one does. What it
/// adds to a state is nothing beside any value that is told from 0.
inline constexpr float kLeastBeta = 0x1p-100f;
/// With a decay per channel the decays are in the rows of `decayed`; exp(g_end) of each channel, [K], takes the place of the first four rows.
inline constexpr int kTotals = kLogDecay * kChunk;

/// Parts of `decayed`, of normalised q and k.
enum Decayed : int {
  kQueriesIn,    // scale q exp(g)
  kKeysIn,       // k exp(g)
  kKeysOut,      // k exp(g_end − g): what it is wrong by never leaves the state, so there is
  kKeysOutRest,  // what rounding left of it over
  kNumDecayed
};

/// One problem, as every kernel sees it. A null pointer is an absent input or an unwanted result.
struct Problem {
  const bf16* q;           // [N, H, K], rows scaled by powers of two where their norms are extreme
  const bf16* k;           // [N, H, K]
  const bf16* v;           // [N, HV, V], forward
  const float* beta;       // [N, HV]
  const float* log_decay;  // [N, HV]
  const float* q_norm;     // [N, H, 2]: 1 / |q| of the rows above, and of the rows that were given
  const float* k_norm;     // [N, H, 2]
  const int64_t* cu;       // [S + 1]
  int64_t S, N, H, HV, K, V, slots;
  float scale;
  const void* channel_decay;  // [N, HV, K]: log decay of each channel, instead of log_decay
  bool channel_decay_is_float;

  float* factors;   // [slots, HV, kNumFactors, 64]
  bf16* triangles;  // [slots, HV, 4, kTriangle]: A, its rest, P = scale (q k^T ∘ decay), its rest
  bf16* decayed;    // [kNumDecayed, N, HV, K], with decays per channel
  bf16* states;     // [slots, HV, V, K]: before each chunk
  bf16* u;          // [N, HV, V]
  uint8_t* u_rest;  // [N, HV, V]: digits of its rest (rest.h), of chunks whose keys repeat
  int* repeats;     // [slots, HV]: whether a chunk's keys repeat
};

void launch_chunks(Context& ctx, const Problem& p);
void launch_channel_chunks(Context& ctx, const Problem& p);

struct ForwardParams {
  Problem problem;
  const float* initial;  // [S, HV, K, V] or null
  float* final_state;    // [S, HV, K, V]
  bf16* o;               // [N, HV, V]
};
void launch_forward(Context& ctx, const ForwardParams& params);

struct BackwardParams {
  Problem problem;
  const bf16* d_o;       // [N, HV, V] or null
  const float* d_final;  // [S, HV, K, V] or null
  float* d_initial;      // [S, HV, K, V] or null
  bf16* d_v;             // [N, HV, V] or null
  bf16* d_r;             // [N, HV, V]: gradient of beta (v − k⁺ S), over beta
  uint8_t* d_r_rest;     // [N, HV, V]: digits of its rest (rest.h), of chunks whose keys repeat
  bf16* d_states;        // [slots, HV, V, K]: gradient of the state after each chunk
};
void launch_backward(Context& ctx, const BackwardParams& params);

struct GradientParams {
  BackwardParams backward;
  bf16 *d_q, *d_k;        // [N, HV, K] or null: of normalised q and k, per value head
  float* d_beta;          // [N, HV] or null
  float* d_log_decay;     // [N, HV] or null
  void* d_channel_decay;  // [N, HV, K] or null, with decays per channel
  bool d_channel_decay_is_float;
};
void launch_gradients(Context& ctx, const GradientParams& params);
void launch_channel_gradients(Context& ctx, const GradientParams& params);

struct NormParams {
  const bf16* x;    // [rows, K]
  bf16* y;          // [rows, K]: x, but for rows of huge values, which are scaled by a power of two
  float* norm;      // [rows, 2]: 1 / sqrt(sum of squares + eps) of y's rows and of x's
  const bf16* d_y;  // [rows, group, K]: gradients of normalised rows, backward
  bf16* d_x;        // [rows, K]
  int64_t rows, K, group;
};
void launch_norms(Context& ctx, const NormParams& params);
/// d_x: the sum over the group, then through the norm (norm null: there is none).
void launch_gather(Context& ctx, const NormParams& params);

/// Whether these kernels take the problem; the others take all of them, slower.
bool takes(Context& ctx, const GatedDeltaRule::Inputs& in, const GatedDeltaRule::Attrs& attrs);
GatedDeltaRule::Saved forward(Context& ctx, const GatedDeltaRule::Inputs& in, const GatedDeltaRule::Attrs& attrs, GatedDeltaRule::Outputs& out);
void backward(Context& ctx, const GatedDeltaRule::Saved& saved, const GatedDeltaRule::Attrs& attrs, const GatedDeltaRule::Outputs& d_out,
              GatedDeltaRule::Inputs& d_in);

#ifdef __CUDACC__
__device__ inline float written_beta(float beta) { return fabsf(beta) < kLeastBeta ? kLeastBeta : beta; }

/// Whether keys repeat: the mean square of the cosine between two of a chunk is more than 1/2. What tokens write then points one way, signs may
/// alternate, and what rounding does to each is as much as their sum. Sums over all pairs of products of keys, all squared, over those of a token
/// with itself, and over the squares of the latter.
__device__ inline bool keys_repeat(float all, float own, float own_squared) {
  return own * own > 1.5f * own_squared && all - own_squared > 0.5f * (own * own - own_squared);  // and there is more than one key
}

struct Chunk {
  int64_t sequence, first;  // token
  int count;                // tokens; 0: the slot is unused
};

__device__ inline Chunk chunk_of(const Problem& p, int64_t slot) {
  int64_t low = 0, high = p.S;  // the sequence is in [low, high)
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (p.cu[middle] / kChunk + middle <= slot) low = middle;
    else high = middle;
  }
  const int64_t first = p.cu[low] + (slot - p.cu[low] / kChunk - low) * kChunk, left = p.cu[low + 1] - first;
  return {low, first, static_cast<int>(left < 0 ? 0 : left < kChunk ? left : kChunk)};
}
#endif

}  // namespace braid::delta_cuda
