// Backward without floating atomics: the tokens of every row of the vocabulary are listed in the order of n (a stable counting sort),
// then one block adds up each list.
#include <algorithm>

#include "cuda/device/scalar.h"
#include "cuda/kernels/embedding/rows.h"
#include "cuda/kernels/operands.h"
#include "ops/embedding.h"

namespace braid {
namespace {

constexpr int kSortThreads = 256;

struct SortParams {
  const int64_t* tokens;  // [N]
  int* counts;            // [parts, V]: tokens v in a part, then how many parts before it have
  int* totals;            // [V]
  int* starts;            // [V]: where the list of v begins
  int* cursor;            // [1]
  int* lists;             // [N]
  int64_t N, V, part_tokens;
  int parts;
};

__device__ bool in_vocabulary(const SortParams& p, int64_t token) { return token >= 0 && token < p.V; }

__global__ void __launch_bounds__(kSortThreads) count_tokens(SortParams p) {
  const int64_t begin = blockIdx.x * p.part_tokens, end = min(p.N, begin + p.part_tokens);
  for (int64_t n = begin + threadIdx.x; n < end; n += blockDim.x)
    if (in_vocabulary(p, p.tokens[n])) atomicAdd(p.counts + blockIdx.x * p.V + p.tokens[n], 1);
}

// Where a list lies in `lists` depends on the order of atomics; what it holds does not.
__global__ void __launch_bounds__(kSortThreads) place_lists(SortParams p) {
  const int64_t v = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (v >= p.V) return;
  int total = 0;
  for (int part = 0; part < p.parts; ++part) {
    int& count = p.counts[part * p.V + v];
    const int before = total;
    total += count;
    count = before;
  }
  p.totals[v] = total;
  p.starts[v] = total > 0 ? atomicAdd(p.cursor, total) : 0;
}

__global__ void __launch_bounds__(kSortThreads) fill_lists(SortParams p) {
  __shared__ int64_t chunk[kSortThreads];
  const int64_t begin = blockIdx.x * p.part_tokens, end = min(p.N, begin + p.part_tokens);
  for (int64_t first = begin; first < end; first += kSortThreads) {
    const int64_t n = first + threadIdx.x, token = n < end ? p.tokens[n] : -1;
    chunk[threadIdx.x] = token;
    __syncthreads();
    int rank = 0, later = 0;
    for (int i = 0; i < kSortThreads; ++i) {
      const bool same = chunk[i] == token;
      rank += same && i < threadIdx.x;
      later += same && i > threadIdx.x;
    }
    const bool known = in_vocabulary(p, token);
    int* next = p.counts + blockIdx.x * p.V + token;
    const int at = known ? *next + rank : 0;
    __syncthreads();  // all have read `next` before the last of its token moves it on
    if (known) p.lists[p.starts[token] + at] = static_cast<int>(n);
    if (known && later == 0) *next = at + 1;
    __syncthreads();
  }
}

struct SumParams {
  const int64_t* tokens;  // [N]
  const int* totals;      // [V]
  const int* starts;      // [V]
  const int* cursor;      // [1]: length of all lists
  const int* lists;       // [N]
  const void* d_y;        // [N, D]
  float* d_weight;        // [V, D], added to
  int64_t N, D;
};

// d_weight_v += Σ d_y_n over the list of v, in order: the block of a list's first entry does it.
template <class T, int width>
__global__ void __launch_bounds__(256) embedding_backward(SumParams p) {
  const int known = *p.cursor;
  for (int64_t entry = blockIdx.x; entry < known; entry += gridDim.x) {
    const int64_t v = p.tokens[p.lists[entry]];
    if (p.starts[v] != entry) continue;
    const int* list = p.lists + entry;
    const int count = p.totals[v];
    for (int64_t d = threadIdx.x * width; d < p.D; d += blockDim.x * width) {
      float sum[width] = {};
#pragma unroll 4
      for (int i = 0; i < count; ++i) {
        float row[width];
        device::load(static_cast<const T*>(p.d_y) + list[i] * p.D + d, row);
#pragma unroll
        for (int j = 0; j < width; ++j) sum[j] += row[j];
      }
      float total[width];
      device::load(p.d_weight + v * p.D + d, total);
#pragma unroll
      for (int j = 0; j < width; ++j) total[j] += sum[j];
      device::store(p.d_weight + v * p.D + d, total);
    }
  }
}

using cuda::LaunchConfig;

/// Lists of all tokens; the tensors own what `params` points to.
struct TokenLists {
  Tensor counts, totals, starts, cursor, lists;
  SortParams params;
};

TokenLists sort_tokens(Context& ctx, const Tensor& tokens, int64_t V) {
  constexpr int64_t kMaxParts = 128, kMaxCounts = 1 << 24;
  const int64_t N = tokens.numel();
  const int64_t parts = std::max<int64_t>(1, std::min({(N + 1023) / 1024, kMaxParts, kMaxCounts / V}));
  const auto ints = [&](int64_t count) { return Tensor::empty(ctx, {count}, DType::i32); };
  TokenLists sorted{ints(parts * V), ints(V), ints(V), ints(1), ints(N), {}};
  fill_zero(ctx, sorted.counts);
  fill_zero(ctx, sorted.cursor);
  sorted.params = {tokens.data<int64_t>(),
                   sorted.counts.data<int32_t>(),
                   sorted.totals.data<int32_t>(),
                   sorted.starts.data<int32_t>(),
                   sorted.cursor.data<int32_t>(),
                   sorted.lists.data<int32_t>(),
                   N,
                   V,
                   (N + parts - 1) / parts,
                   static_cast<int>(parts)};
  const LaunchConfig by_part{.grid = static_cast<unsigned>(parts), .block = kSortThreads};
  const LaunchConfig by_row{.grid = static_cast<unsigned>((V + kSortThreads - 1) / kSortThreads), .block = kSortThreads};
  cuda::launch(ctx.stream(), "embedding_count", &count_tokens, by_part, sorted.params);
  cuda::launch(ctx.stream(), "embedding_place", &place_lists, by_row, sorted.params);
  cuda::launch(ctx.stream(), "embedding_fill", &fill_lists, by_part, sorted.params);
  return sorted;
}

}  // namespace

void Embedding::backward_cuda(Context& ctx, const Saved& saved, const Attrs&, const Outputs& d_out, Inputs& d_in) {
  if (!d_in.weight) return;
  const int64_t N = saved.tokens.numel(), V = d_in.weight.size(0), D = d_in.weight.size(1);
  if (N * V * D == 0) return;
  BRAID_CHECK(N < INT32_MAX && V < INT32_MAX, name, ": on a GPU expected fewer than 2^31 tokens and rows, got ", N, " and ", V);
  const TokenLists sorted = sort_tokens(ctx, saved.tokens, V);
  const SortParams& lists = sorted.params;
  const SumParams params{lists.tokens, lists.totals, lists.starts, lists.cursor, lists.lists, d_out.y.raw(), d_in.weight.data<float>(), N, D};
  const bool wide = D % 4 == 0 && cuda::aligned16(d_out.y) && cuda::aligned16(d_in.weight);
  const auto run = [&](void (*kernel)(SumParams)) {
    cuda::launch(ctx.stream(), "embedding_backward", kernel, cuda::rows_config(N, D, wide ? 4 : 1), params);
  };
  if (d_out.y.dtype() == DType::bf16) run(wide ? &embedding_backward<device::bf16, 4> : &embedding_backward<device::bf16, 1>);
  else run(wide ? &embedding_backward<float, 4> : &embedding_backward<float, 1>);
}

}  // namespace braid
