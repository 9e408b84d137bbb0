// Chunks of 64 tokens of packed sequences, and what the kernels of gated_linear_attention share.
//
// Chunk slots: sequence s owns slots begin(s) / 64 + s … end(s) / 64 + s, at least as many as it has chunks, so that a slot finds its
// sequence by search in cu_seqlens and no table is needed. Slots past a sequence's chunks stay unused.
#pragma once
#include <algorithm>
#include <cmath>

#include "cuda/device/scalar.h"
#include "ops/recurrence/gated_linear_attention.h"

namespace braid::gla_cuda {

inline constexpr int kChunk = 64;  // tokens between kept states
inline constexpr int kGroup = 8;   // tokens whose loads are issued together
inline constexpr int kSlice = 8;   // columns of V a thread holds for its key channel
inline constexpr int kMaxKeys = 512;

/// One problem, as every kernel sees it.
struct Problem {
  const void* q;              // [N, H, K]
  const void* k;              // [N, H, K]
  const void* v;              // [N, H, V]
  const void* log_decay;      // see the strides; null: no decay
  const int64_t* cu_seqlens;  // [S + 1]
  int64_t S, H, K, V;
  int64_t slots;                               // one per sequence when `single`
  int64_t decay_token, decay_head, decay_key;  // strides of log_decay in elements; 0 where it does not vary
  float scale;
  bool decay_is_float;  // else it has the dtype of q
  bool single;          // every sequence is one chunk at most: states are indexed by sequence and no scan runs
};

inline Problem problem_of(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& log_decay,
                          const GatedLinearAttention::Attrs& attrs) {
  const int64_t H = q.size(1), K = q.size(2), S = attrs.seqs.count();
  BRAID_CHECK(K <= kMaxKeys, "gated_linear_attention: on a GPU K must be at most ", kMaxKeys, ", got ", K);
  BRAID_CHECK(H <= 65535, "gated_linear_attention: on a GPU H must be at most 65535, got ", H);
  Problem p = {};
  p.q = q.raw();
  p.k = k.raw();
  p.v = v.raw();
  p.cu_seqlens = attrs.seqs.on_device(ctx).data<int64_t>();
  p.S = S;
  p.H = H;
  p.K = K;
  p.V = v.size(2);
  p.single = attrs.seqs.max_length() <= kChunk;
  p.slots = p.single ? S : attrs.seqs.num_tokens() / kChunk + S;
  p.scale = static_cast<float>(attrs.scale.value_or(1 / std::sqrt(static_cast<double>(std::max<int64_t>(1, K)))));
  if (!log_decay) return p;
  p.log_decay = log_decay.raw();
  p.decay_is_float = log_decay.dtype() == DType::f32;
  const bool channel = log_decay.rank() == 3;
  p.decay_key = channel ? 1 : 0;
  p.decay_head = channel ? K : 1;
  p.decay_token = log_decay.rank() == 1 ? 0 : channel ? H * K : H;
  return p;
}

/// Threads of a block with one thread a key channel.
inline unsigned key_threads(const Problem& p) { return static_cast<unsigned>(std::max<int64_t>(1, (p.K + 31) / 32) * 32); }
/// Slices of V; at least one, so that gradients of an empty V are written (as zero).
inline unsigned num_slices(const Problem& p) { return static_cast<unsigned>(std::max<int64_t>(1, (p.V + kSlice - 1) / kSlice)); }

/// Turns the chunks' own contributions into states, in place: going through each sequence's chunks in order (or in reverse),
///   states[c], state = state, decay[c] * state + states[c]
/// from initial [S, H, K, V] (null: zero); the last state goes to `final` [S, H, K, V] (null: unwanted).
void launch_scan(Context& ctx, const Problem& p, float* states, const float* decay, const float* initial, float* final_state, bool reverse);

struct Chunk {
  int64_t slot;
  int64_t sequence;
  int64_t first;  // token
  int count;      // tokens, 0: the slot is unused or the sequence empty
};

__device__ inline Chunk chunk_of(const Problem& p, int64_t slot) {
  if (p.single) return {slot, slot, p.cu_seqlens[slot], static_cast<int>(p.cu_seqlens[slot + 1] - p.cu_seqlens[slot])};
  int64_t low = 0, high = p.S;  // the sequence is in [low, high)
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (p.cu_seqlens[middle] / kChunk + middle <= slot) low = middle;
    else high = middle;
  }
  const int64_t first = p.cu_seqlens[low] + (slot - p.cu_seqlens[low] / kChunk - low) * kChunk;
  const int64_t left = p.cu_seqlens[low + 1] - first;
  return {slot, low, first, static_cast<int>(left < 0 ? 0 : left < kChunk ? left : kChunk)};
}

__device__ inline int64_t state_row(const Problem& p, int64_t index, int64_t h, int64_t key) { return ((index * p.H + h) * p.K + key) * p.V; }

template <class T>
__device__ inline float decay_at(const Problem& p, int64_t t, int64_t h, int64_t key) {
  if (!p.log_decay) return 1.0f;
  const int64_t at = t * p.decay_token + h * p.decay_head + key * p.decay_key;
  return expf(p.decay_is_float ? static_cast<const float*>(p.log_decay)[at] : device::to_float(static_cast<const T*>(p.log_decay)[at]));
}

/// One key channel's values of kGroup tokens; `neutral` where there is no token (or no such channel).
template <class T>
__device__ inline void load_keys(const Problem& p, const void* from, const Chunk& chunk, int64_t h, int64_t key, int t, float (&to)[kGroup]) {
#pragma unroll
  for (int i = 0; i < kGroup; ++i)
    to[i] = t + i < chunk.count && key < p.K ? device::to_float(static_cast<const T*>(from)[((chunk.first + t + i) * p.H + h) * p.K + key]) : 0.0f;
}
template <class T>
__device__ inline void load_decays(const Problem& p, const Chunk& chunk, int64_t h, int64_t key, int t, float (&to)[kGroup]) {
#pragma unroll
  for (int i = 0; i < kGroup; ++i) to[i] = t + i < chunk.count && key < p.K ? decay_at<T>(p, chunk.first + t + i, h, key) : 1.0f;
}

/// A slice of the rows [N, H, V] `from` (null: zero) of the chunk's tokens into shared memory, zero outside. Needs a barrier after.
template <class T>
__device__ inline void stage_slice(const Problem& p, const void* from, const Chunk& chunk, int64_t h, int64_t column, float (*to)[kSlice]) {
  for (int i = threadIdx.x; i < kChunk * kSlice; i += blockDim.x) {
    const int t = i / kSlice, c = i % kSlice;
    const bool live = from && t < chunk.count && column + c < p.V;
    to[t][c] = live ? device::to_float(static_cast<const T*>(from)[((chunk.first + t) * p.H + h) * p.V + column + c]) : 0.0f;
  }
}

__device__ inline void load_state(const Problem& p, const float* row, int64_t key, int64_t column, float (&to)[kSlice]) {
#pragma unroll
  for (int c = 0; c < kSlice; ++c) to[c] = row && key < p.K && column + c < p.V ? row[column + c] : 0.0f;
}
__device__ inline void store_state(const Problem& p, float* row, int64_t key, int64_t column, const float (&from)[kSlice]) {
#pragma unroll
  for (int c = 0; c < kSlice; ++c)
    if (key < p.K && column + c < p.V) row[column + c] = from[c];
}

/// Sums eight values over the warp: lane l gets the sum of value l / 4.
__device__ inline float warp_sum_of_eight(const float (&x)[8]) {
  const int lane = threadIdx.x % 32;
  float four[4], two[2];
#pragma unroll
  for (int i = 0; i < 4; ++i) four[i] = (lane & 16 ? x[i + 4] : x[i]) + __shfl_xor_sync(0xffffffffu, lane & 16 ? x[i] : x[i + 4], 16);
#pragma unroll
  for (int i = 0; i < 2; ++i) two[i] = (lane & 8 ? four[i + 2] : four[i]) + __shfl_xor_sync(0xffffffffu, lane & 8 ? four[i] : four[i + 2], 8);
  float one = (lane & 4 ? two[1] : two[0]) + __shfl_xor_sync(0xffffffffu, lane & 4 ? two[0] : two[1], 4);
  one += __shfl_xor_sync(0xffffffffu, one, 2);
  return one + __shfl_xor_sync(0xffffffffu, one, 1);
}

/// Writes a slice of `to` [N, H, V]: token t, column c is the sum over the block's warps of partial[warp][t][c], in order.
template <class T>
__device__ inline void store_slice(const Problem& p, void* to, const Chunk& chunk, int64_t h, int64_t column, const float* partial) {
  const int num_warps = blockDim.x / 32;
  for (int i = threadIdx.x; i < chunk.count * kSlice; i += blockDim.x) {
    if (column + i % kSlice >= p.V) continue;
    float sum = 0;
    for (int warp = 0; warp < num_warps; ++warp) sum += partial[warp * kChunk * kSlice + i];
    static_cast<T*>(to)[((chunk.first + i / kSlice) * p.H + h) * p.V + column + i % kSlice] = device::from_float<T>(sum);
  }
}

}  // namespace braid::gla_cuda
