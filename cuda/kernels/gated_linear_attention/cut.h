// The tensor-core path: how the tokens are cut, and what its kernels share.
#pragma once
#include "cuda/kernels/gated_linear_attention/chunks.h"

namespace braid::gla_cuda {

/// Sequences cut into pieces of `length` tokens, slots as in chunks.h. A length above N means one piece a sequence: then slot = sequence.
struct Cut {
  const int64_t* cu_seqlens;  // [S + 1]
  int64_t num_sequences, length, slots;
};

struct Piece {
  int64_t slot, sequence;
  int64_t first, count;    // tokens; 0: the slot is unused, or the sequence is empty
  int64_t first_chunk;     // the slot of its first chunk of 64 tokens
  bool is_first, is_last;  // of its sequence; an empty sequence has one piece, which is both
  int64_t num_chunks;
};

/// `known`: the cut's length where it is a constant (a division by another is a hundred instructions), else 0.
template <int64_t known = 0>
__device__ inline Piece piece_of(const Cut& cut, int64_t slot) {
  const int64_t length = known ? known : cut.length;
  int64_t low = 0, high = cut.num_sequences;  // the sequence is in [low, high)
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (cut.cu_seqlens[middle] / length + middle <= slot) low = middle;
    else high = middle;
  }
  const int64_t begin = cut.cu_seqlens[low], end = cut.cu_seqlens[low + 1];
  const int64_t first = begin + (slot - begin / length - low) * length;
  const int64_t count = first >= end ? 0 : first + length < end ? length : end - first;
  const bool is_first = first == begin, is_last = count > 0 ? first + count == end : is_first;
  return {slot, low, first, count, begin / kChunk + low + (first - begin) / kChunk, is_first, is_last, (count + kChunk - 1) / kChunk};
}

/// What a block works on: tiles of one slot and head are neighbours, then its heads, so that what they share is read from memory once.
struct Block {
  int64_t slot, h, tile;
};
__device__ inline Block block_of(int64_t H, int64_t tiles = 1) {
  const unsigned heads = static_cast<unsigned>(H), row = blockIdx.x / static_cast<unsigned>(tiles);
  return {row / heads, row % heads, blockIdx.x % static_cast<unsigned>(tiles)};
}
inline dim3 grid_of(int64_t slots, int64_t H, int64_t tiles = 1) { return dim3(static_cast<unsigned>(slots * H * tiles)); }

/// What both passes compute from q, k and the decays of each chunk, with G the sum of the chunk's log decays up to and with a token:
struct Prepared {
  Tensor q;        // [N, H, K] bf16: scale q exp(G); only of decays per channel
  Tensor k;        // [N, H, K] bf16: k exp(G of the chunk's last token - G); only of decays per channel
  Tensor pairs;    // [chunks, H, 64, 64] bf16: scale Σ_k q_t k_s exp(G_t - G_s) for s ≤ t, else 0
  Tensor decay;    // [chunks, H, K] f32: the product of the chunk's decays
  Tensor factors;  // [chunks, H, 4, 64] f32, only of decays that channels share: scale exp(G), exp(G of the chunk's last token - G), and both as
                   // pairs of bf16 words of two tokens, their roundings and what those lack
};

/// The tensor-core path: problem, and the two cuts of its tokens.
struct FastProblem {
  Problem problem;
  Cut chunks, segments;  // states are kept before each segment
  int64_t num_tokens;
  bool joined;  // false: every sequence is one segment, whose states are the initial and the final one
};

/// True when the tensor-core kernels are built for it: bf16, K and V of 64, 128, 256 or 512, sequences of more than 16 tokens.
bool takes_fast_path(const Problem& p, const Tensor& q, const GatedLinearAttention::Attrs& attrs);

/// Saves the states before each segment (the initial state when not `joined`) and, where channels share decays, what was prepared.
GatedLinearAttention::Saved forward_fast(Context& ctx, const Problem& p, const GatedLinearAttention::Inputs& in,
                                         const GatedLinearAttention::Attrs& attrs, GatedLinearAttention::Outputs& out);
void backward_fast(Context& ctx, const Problem& p, const GatedLinearAttention::Saved& saved, const GatedLinearAttention::Attrs& attrs,
                   const GatedLinearAttention::Outputs& d_out, GatedLinearAttention::Inputs& d_in);

/// One walk over the chunks of each segment with a state [K, V] in registers, split over its side M into blocks; C is its other side.
struct WalkParams {
  Problem problem;
  Cut segments;
  const device::bf16* across;   // [N, H, C]: out_t = state · across_t (+ within the chunk: Σ pairs · rows)
  const device::bf16* columns;  // [N, H, C], [N, H, M]: after the chunk, state = decay state + Σ_t rows_t columns_tᵀ
  const device::bf16* rows;
  const device::bf16* pairs;  // [chunks, H, 64, 64]
  const float* decay;         // [chunks, H, K]
  const float* factors;       // as in Prepared, or null: what tokens of state · across, and of `rows`, are still to be multiplied with
  const float* states;        // [segments, H, K, V] before each segment in walking order; null: zero
  float* last;                // [S, H, K, V] after the sequence in walking order, or null; Walk::local: [segments, H, K, V]
  device::bf16* out;          // [N, H, M]
  float* segment_decay;       // Walk::local: [segments, H, K], the product of the segment's decays
  uint4* kept;                // Walk::keys: all states before chunks, written forwards and read in reverse; null: neither
  float* spanning;            // Walk::keys in reverse: [parts, chunks, H, K], decay Σ_v kept · state
  int64_t num_chunk_slots;
  bool reverse;
};

/// Which sides of the state are which, and what else is done. values: M = V, C = K, pairs are added; keys: M = K, C = V; local: as
/// values, only the state after the segment from a zero one before it. What pairs are multiplied with depends on the direction, of
/// which the others are told by WalkParams.
enum class Walk { values, values_reverse, keys, local };
constexpr bool adds_pairs(Walk mode) { return mode == Walk::values || mode == Walk::values_reverse; }

/// Rows of M that a block of a walk takes: 128, or all 64; with 512 columns two warps share rows, and it takes 64.
inline int64_t walk_tile(int64_t M, int64_t C) { return C > 256 || M < 128 ? 64 : 128; }
/// Blocks that a multiprocessor holds at once: the state is in registers.
constexpr int walk_blocks_a_multiprocessor(int64_t C) { return C <= 128 ? 2 : 1; }

void launch_walk_values(Context& ctx, const WalkParams& params);
void launch_walk_values_reverse(Context& ctx, const WalkParams& params);
void launch_walk_keys(Context& ctx, const WalkParams& params);
void launch_walk_local(Context& ctx, const WalkParams& params);

/// Parts that the columns C of a state are split into, each with a sum of its own in WalkParams::spanning.
inline int64_t num_column_parts(int64_t C) { return C > 256 ? 2 : 1; }
/// 128-bit pieces of WalkParams::kept.
inline int64_t num_kept(const FastProblem& f) { return f.chunks.slots * f.problem.H * f.problem.K * f.problem.V / 8; }

struct PrepareParams {
  Problem problem;
  Cut chunks;
  device::bf16* q;  // as in Prepared
  device::bf16* k;
  device::bf16* pairs;
  float* decay;
  float* factors;
};
void launch_prepare_channel(Context& ctx, const PrepareParams& params);
void launch_prepare_head(Context& ctx, const PrepareParams& params);

struct FinishParams {
  Problem problem;
  Cut chunks;
  const device::bf16* d_o;       // [N, H, V]
  const device::bf16* across_q;  // [N, H, K]: S d_o, S the state before the chunk
  const device::bf16* across_k;  // [N, H, K]: G v, G the gradient of the state after the chunk
  const float* spanning;         // [parts, chunks, H, K], null when no d_decay is wanted
  device::bf16* d_q;             // [N, H, K] or null
  device::bf16* d_k;             // [N, H, K] or null
  void* d_decay;                 // like the decays: [N, H, K] or [N, H]; null: unwanted
  int64_t parts;
  bool d_decay_is_float;
};
void launch_finish_channel(Context& ctx, const FinishParams& params);
void launch_finish_head(Context& ctx, const FinishParams& params);

/// In place, along each sequence's segments (in reverse: from the last to the first):
///   states[i], state = state, decay[i] * state + states[i]    from initial [S, H, K, V] (null: zero)
void launch_join(Context& ctx, const FastProblem& f, float* states, const float* decay, const float* initial, bool reverse);

}  // namespace braid::gla_cuda
