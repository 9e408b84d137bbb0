#include "cuda/kernels/linear_recurrence/tiles.h"
#include "cuda/runtime/check.h"

namespace braid::cuda {
namespace {

constexpr int kChannels = 32, kSegments = 32;

struct JoinParams {
  const float* decay;  // [tiles, D]
  float* rise;         // [tiles, D]; becomes what enters each tile
  int64_t tiles, D;
  bool reverse;
};

// A block has 32 channels; segment y of it holds every channel's tiles [y · per, (y + 1) · per) in walking order.
__global__ void __launch_bounds__(kChannels* kSegments) join_kernel(JoinParams p) {
  __shared__ float decays[kSegments][kChannels], rises[kSegments][kChannels];
  const int64_t d = int64_t{blockIdx.x} * kChannels + threadIdx.x;
  const bool live = d < p.D;
  const int64_t per = (p.tiles + kSegments - 1) / kSegments;
  const int64_t first = min(p.tiles, threadIdx.y * per), last = min(p.tiles, first + per);
  const auto at = [&](int64_t i) { return (p.reverse ? p.tiles - 1 - i : i) * p.D + d; };
  float decay = 1, rise = 0;
  if (live) {
#pragma unroll 4
    for (int64_t i = first; i < last; ++i) {
      const float a = p.decay[at(i)];
      rise = a * rise + p.rise[at(i)];
      decay *= a;
    }
  }
  decays[threadIdx.y][threadIdx.x] = decay;
  rises[threadIdx.y][threadIdx.x] = rise;
  __syncthreads();
  if (!live) return;
  float state = 0;
  for (int y = 0; y < threadIdx.y; ++y) state = decays[y][threadIdx.x] * state + rises[y][threadIdx.x];
  for (int64_t i = first; i < last; ++i) {
    const float next = p.decay[at(i)] * state + p.rise[at(i)];
    p.rise[at(i)] = state;
    state = next;
  }
}

}  // namespace

void join_tiles(Context& ctx, const Tensor& decay, const Tensor& rise, bool reverse) {
  const JoinParams params{decay.data<float>(), rise.data<float>(), decay.size(0), decay.size(1), reverse};
  launch(ctx.stream(), "linear_recurrence_join", &join_kernel,
         {.grid = static_cast<unsigned>((params.D + kChannels - 1) / kChannels), .block = dim3(kChannels, kSegments)}, params);
}

}  // namespace braid::cuda
