// What a chunk is before any state is known: its factors, scores P = scale (q k^T ∘ decay) and A = (I + L)^{-1} with
// L = strictly lower part of diag(beta) (k k^T ∘ decay). All chunks in parallel.
#include "cuda/device/reduce.h"
#include "cuda/kernels/gated_delta_rule/chunks.h"
#include "cuda/kernels/gated_delta_rule/inverse.h"
#include "cuda/runtime/check.h"

namespace braid::delta_cuda {
namespace {

constexpr int kThreads = 128;
constexpr float kNoDecay = -104.0f;  // exp of less is 0: the sum over a chunk stays finite and its differences keep their digits

template <int K>
struct Shared {
  struct Rows {
    bf16 k[kChunk * K], q[kChunk * K];
  };
  union {  // one after the other: the less a block needs, the more blocks hide each other's waiting
    Rows rows;
    Squares squares;
  };
  float factors[kNumFactors][kChunk];
  float sums[3][4];  // by warp
};

template <class S>
__device__ inline void compute_factors(const Problem& p, const Chunk& chunk, int64_t j, S& shared) {
  auto& f = shared.factors;
  if (threadIdx.x < kChunk) {
    const int i = threadIdx.x;
    const bool live = i < chunk.count;
    const int64_t token = chunk.first + (live ? i : 0), at = token * p.HV + j, row = token * p.H + j / (p.HV / p.H);
    const float log_decay = live && p.log_decay ? p.log_decay[at] : 0.0f;
    f[kLogDecay][i] = log_decay < kNoDecay ? kNoDecay : log_decay;  // NaN stays
    f[kBeta][i] = live ? p.beta[at] : 0.0f;
    f[kWrittenBeta][i] = live ? written_beta(p.beta[at]) : 0.0f;
    f[kKeyNorm][i] = live && p.k_norm ? p.k_norm[row * 2] : 1.0f;
    f[kQueryNorm][i] = p.scale * (live && p.q_norm ? p.q_norm[row * 2] : 1.0f);
  }
  __syncthreads();
  if (threadIdx.x < 32) {  // a lane sums two tokens, the warp their pairs
    const int lane = threadIdx.x;
    const float first = f[kLogDecay][2 * lane], second = first + f[kLogDecay][2 * lane + 1];
    float before = __shfl_up_sync(0xffffffffu, second, 1);
    if (lane == 0) before = 0;
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
      const float other = __shfl_up_sync(0xffffffffu, before, offset);
      if (lane >= offset) before += other;
    }
    f[kLogDecay][2 * lane] = before + first, f[kLogDecay][2 * lane + 1] = before + second;
  }
  __syncthreads();
  if (threadIdx.x < kChunk) {
    const int i = threadIdx.x;
    const float g = f[kLogDecay][i], end = f[kLogDecay][kChunk - 1], key = f[kKeyNorm][i];
    f[kKeyIn][i] = expf(g) * key, f[kKeyOut][i] = expf(end - g) * key;
    f[kQueryIn][i] = expf(g) * f[kQueryNorm][i];
  }
  __syncthreads();
}

/// L to shared memory, P and its rest to `scores`; a warp has 16 rows of both. What tells whether keys repeat to `sums`.
template <int K, class S>
__device__ inline void compute_squares(S& shared, bf16* scores, float (&sums)[3]) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const uint32_t k_tile = device::shared_address(shared.rows.k), q_tile = device::shared_address(shared.rows.q);
  const uint32_t by_rows = lane_offset<K, true>(), by_columns = lane_offset<K, false>();
  float kk[8][4] = {}, qk[8][4] = {};
#pragma unroll 4
  for (int c = 0; c < K; c += 16) {
    uint32_t key[4], query[4], other[4];
    device::ldmatrix_x4(key, k_tile + block_at<K>(by_columns, 16 * warp, c));
    device::ldmatrix_x4(query, q_tile + block_at<K>(by_columns, 16 * warp, c));
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      if (n > warp) continue;
      device::ldmatrix_x4(other, k_tile + block_at<K>(by_rows, 16 * n, c));
      mma_two(kk[2 * n], kk[2 * n + 1], key, other);
      mma_two(qk[2 * n], qk[2 * n + 1], query, other);
    }
  }
  __syncthreads();  // the rows give way to L
  const auto& f = shared.factors;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int i = 16 * warp + lane / 4 + 8 * half;
    const float g = f[kLogDecay][i], length = f[kKeyNorm][i], query = f[kQueryNorm][i], key = f[kWrittenBeta][i] * f[kKeyNorm][i];
#pragma unroll
    for (int n = 0; n < 8; n += 2) {
      uint32_t pieces[2], rests[2];
#pragma unroll
      for (int m = n; m < n + 2; ++m) {
        const int j = 8 * m + 2 * (lane % 4);
        const float cosine = length * f[kKeyNorm][j] * kk[m][2 * half], next_cosine = length * f[kKeyNorm][j + 1] * kk[m][2 * half + 1];
        sums[0] += (j < i ? 2 * cosine * cosine : 0.0f) + (j + 1 < i ? 2 * next_cosine * next_cosine : 0.0f);
        if (j == i || j + 1 == i) {
          const float own = j == i ? cosine : next_cosine;
          sums[0] += own * own, sums[1] += own, sums[2] += own * own;
        }
        const float one = j <= i ? expf(g - f[kLogDecay][j]) * f[kKeyNorm][j] : 0.0f;
        const float two = j + 1 <= i ? expf(g - f[kLogDecay][j + 1]) * f[kKeyNorm][j + 1] : 0.0f;
        const float p_one = query * one * qk[m][2 * half], p_two = query * two * qk[m][2 * half + 1];
        pieces[m - n] = device::pack_bf16(p_one, p_two), rests[m - n] = rest_of(pieces[m - n], p_one, p_two);
        shared.squares.lower[i][j] = j < i ? key * one * kk[m][2 * half] : 0.0f;
        shared.squares.lower[i][j + 1] = j + 1 < i ? key * two * kk[m][2 * half + 1] : 0.0f;
      }
      if (n / 2 > warp) continue;
      const uint2 four = paired(pieces[0], pieces[1]), rest = paired(rests[0], rests[1]);
      const int column = 8 * n + pair_column();
      char* at = reinterpret_cast<char*>(scores) + triangle_offset(i, column / 8 * 8) + column % 8 * 2;
      *reinterpret_cast<uint2*>(at) = four;
      *reinterpret_cast<uint2*>(at + kTriangleBytes) = rest;
    }
  }
}

template <int K>
__global__ void __launch_bounds__(kThreads) chunk_kernel(Problem p) {
  extern __shared__ __align__(128) unsigned char memory[];
  auto& shared = *reinterpret_cast<Shared<K>*>(memory);
  const Chunk chunk = chunk_of(p, blockIdx.x);
  if (chunk.count == 0) return;
  const int64_t j = blockIdx.y, head = j / (p.HV / p.H), at = (chunk.first * p.H + head) * K;
  copy_rows<K, kThreads>(device::shared_address(shared.rows.k), p.k + at, p.H * K, chunk.count, threadIdx.x);
  copy_rows<K, kThreads>(device::shared_address(shared.rows.q), p.q + at, p.H * K, chunk.count, threadIdx.x);
  device::cp_async_commit();
  compute_factors(p, chunk, j, shared);
  float* factors = p.factors + (blockIdx.x * p.HV + j) * kNumFactors * kChunk;
  for (int i = threadIdx.x; i < kNumFactors * kChunk; i += kThreads) factors[i] = shared.factors[i / kChunk][i % kChunk];
  device::cp_async_wait<0>();
  __syncthreads();
  bf16* triangles = p.triangles + (blockIdx.x * p.HV + j) * 4 * kTriangle;
  float sums[3] = {};
  compute_squares<K>(shared, triangles + 2 * kTriangle, sums);
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    sums[i] = device::warp_sum(sums[i]);
    if (threadIdx.x % 32 == 0) shared.sums[i][threadIdx.x / 32] = sums[i];
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    const auto all = [&](int i) { return shared.sums[i][0] + shared.sums[i][1] + shared.sums[i][2] + shared.sums[i][3]; };
    p.repeats[blockIdx.x * p.HV + j] = keys_repeat(all(0), all(1), all(2));
  }
  invert<kThreads>(shared.squares);
  store_split<kThreads>(shared.squares.inverse, triangles);
}

template <int K>
void launch_for(Context& ctx, const Problem& p) {
  const cuda::LaunchConfig config{
      .grid = {static_cast<unsigned>(p.slots), static_cast<unsigned>(p.HV)}, .block = kThreads, .shared_bytes = sizeof(Shared<K>)};
  cuda::launch(ctx.stream(), "gated_delta_rule_chunks", &chunk_kernel<K>, config, p);
}

}  // namespace

void launch_chunks(Context& ctx, const Problem& p) {
  if (p.K == 64) launch_for<64>(ctx, p);
  else if (p.K == 128) launch_for<128>(ctx, p);
  else launch_for<256>(ctx, p);
}

}  // namespace braid::delta_cuda
