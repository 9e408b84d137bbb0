// What the two walks over chunks share. A block walks the chunks of one value head of one sequence for some groups of 16 columns of V.
// The state S^T [16, K] of a group lies in registers as the sums of products, which are at the same time the A fragments of the next
// product. Three kinds of warps:
//   members   the walk itself; a group's members share K, and add up what each knows of S^T k^T
//   writers   one a group, a chunk behind: what is only stored, from fragments that the members publish in shared memory
//   loaders   copy the next chunks into shared memory
// One barrier of the block a chunk: behind it a chunk has arrived, and the one before it is done with by members, published for writers.
// Within a chunk, who has read what will be overwritten arrives on an mbarrier, for which the overwriting warps wait.
#pragma once
#include "cuda/device/barrier.h"
#include "cuda/kernels/gated_delta_rule/chunks.h"
#include "cuda/kernels/gated_delta_rule/tiles.h"
#include "cuda/runtime/check.h"

namespace braid::delta_cuda {

inline constexpr int kSliceBytes = kChunk * 16 * 2;  // 16 columns of v or d_o
inline constexpr int kPublishedBytes = 2048;         // the fragments [16, 64] of one bf16 matrix

/// With a decay per channel, a chunk's operands by when members need them. Early: one place, which they leave half way through a chunk, when it is
/// filled again. Middle and late: two places where there is room for them; where not, they are filled while members begin with early.
enum Area : int { kEarly, kMiddle, kLate, kNumAreas };

/// matrices: that members publish, besides the state.
template <int keys, int groups, int members, bool by_channel, int matrices>
struct WalkPlan {
  static constexpr int K = keys, kGroups = groups, kMembers = members, kKeys = keys / members;
  static constexpr bool kByChannel = by_channel;
  static_assert(kKeys % 64 == 0 && members <= 2);
  static constexpr int kLoaders = groups == 4 ? 4 : 2, kLoaderThreads = 32 * kLoaders;
  static constexpr int kStateWarps = groups * members, kThreads = 32 * (kStateWarps + groups + kLoaders);
  static constexpr int kRowBytes = kChunk * keys * 2;
  /// Of a group: fragments of S^T, then of matrices [16, 64]. Members exchange their sums in the same place.
  static constexpr int kStateFragments = keys * 32, kPublished = kStateFragments + matrices * kPublishedBytes;
  static_assert(members == 1 || kPublished >= 2 * 16 * kChunk * 4);
  /// mbarriers: one a group (what it published is copied), one an area, one a group for its members' exchange.
  static constexpr int kAreaBarriers = 8 * groups, kMemberBarriers = kAreaBarriers + 8 * kNumAreas, kBarrierBytes = kMemberBarriers + 8 * groups;
};

/// Where a block works.
struct Lane {
  int64_t s, j, head, column, begin, length, slot, chunks;

  template <class Plan>
  __device__ static Lane of(const Problem& p) {
    const int64_t slices = p.V / (16 * Plan::kGroups), s = blockIdx.x / slices / p.HV, j = blockIdx.x / slices % p.HV;
    const int64_t begin = p.cu[s], length = p.cu[s + 1] - begin;
    return {s, j, j / (p.HV / p.H), blockIdx.x % slices * 16 * Plan::kGroups, begin, length, begin / kChunk + s, (length + kChunk - 1) / kChunk};
  }
  __device__ int count(int64_t chunk) const { return static_cast<int>(min(length - chunk * kChunk, int64_t{kChunk})); }
  __device__ int64_t first(int64_t chunk) const { return begin + chunk * kChunk; }
  /// Bit i: whether the keys of chunk i of this one's 32 repeat. By a whole warp, once in 32 chunks: a load in every chunk would hold up others.
  __device__ unsigned repeats(const Problem& p, int64_t chunk) const {
    const int64_t mine = chunk / 32 * 32 + threadIdx.x % 32;
    return __ballot_sync(0xffffffffu, mine < chunks && p.repeats[(slot + mine) * p.HV + j]);
  }
};

/// Few lanes: more warps on each shorten the walk. Many: one warp each does the least work.
inline bool is_narrow(const Problem& p) { return p.S * p.HV * (p.V / 64) <= 66; }

/// A tile of q or k of a chunk; columns of v or d_o of all groups (null: zeros). By the loaders' threads.
template <class Plan>
__device__ inline void load_keys(const Problem& p, const Lane& x, const bf16* rows, int64_t chunk, uint32_t to, int thread) {
  copy_rows<Plan::K, Plan::kLoaderThreads>(to, rows + (x.first(chunk) * p.H + x.head) * p.K, p.H * p.K, x.count(chunk), thread);
}
template <class Plan>
__device__ inline void load_values(const Problem& p, const Lane& x, const bf16* values, int64_t chunk, uint32_t to, int thread) {
  const bf16* from = values ? values + (x.first(chunk) * p.HV + x.j) * p.V + x.column : p.k;
#pragma unroll
  for (int at = thread; at < kChunk * 2 * Plan::kGroups; at += Plan::kLoaderThreads) {
    const int row = at / (2 * Plan::kGroups), piece = at % (2 * Plan::kGroups);
    const bool live = values && row < x.count(chunk);
    device::cp_async16(to + piece / 2 * kSliceBytes + tile_offset<16>(row, piece % 2 * 8), from + (live ? row * p.HV * p.V + piece * 8 : 0), live);
  }
}

/// Before the first barrier of the block. Every thread that read or copied arrives by itself: racecheck takes no thread for another of its warp.
template <class Plan>
__device__ inline void init_barriers(uint32_t start) {
  if (threadIdx.x != 0) return;
  const uint32_t first = start + Plan::kBarriers;
  for (int group = 0; group < Plan::kGroups; ++group) {
    device::barrier_init(first + 8 * group, 32);
    device::barrier_init(first + Plan::kMemberBarriers + 8 * group, 32 * Plan::kMembers);
  }
  for (int area = 0; area < kNumAreas; ++area)
    device::barrier_init(first + Plan::kAreaBarriers + 8 * area, area == kEarly ? 32 * Plan::kStateWarps : Plan::kLoaderThreads);
}

/// One group's place and barriers, as a member or its writer sees them.
template <class Plan>
struct Group {
  int group, member;
  unsigned char* published;
  uint32_t barrier;

  __device__ Group(int group, int member, unsigned char* memory)
      : group(group),
        member(member),
        published(memory + Plan::kPlaces + group * Plan::kPublished),
        barrier(device::shared_address(memory) + Plan::kBarriers + 8 * group) {}

  /// The writer has copied what was published a chunk ago.
  __device__ void copied() const { device::barrier_arrive(barrier); }
  __device__ void wait_copied(int64_t step) const { device::barrier_wait(barrier, step % 2); }

  /// The group's two members; twice a step.
  __device__ void meet(int turn) const {
    device::barrier_arrive(barrier + Plan::kMemberBarriers);
    device::barrier_wait(barrier + Plan::kMemberBarriers, turn);
  }

  __device__ uint4* slot(int offset, int i) const { return reinterpret_cast<uint4*>(published + offset) + i * 32 + threadIdx.x % 32; }
  __device__ void publish(int offset, int i, const uint32_t (&a)[4]) const { *slot(offset, i) = make_uint4(a[0], a[1], a[2], a[3]); }
  __device__ void copy(int offset, int i, uint32_t (&a)[4]) const {
    const uint4 x = *slot(offset, i);
    a[0] = x.x, a[1] = x.y, a[2] = x.z, a[3] = x.w;
  }
  __device__ void publish_state(const uint32_t (&a)[Plan::kKeys / 16][4]) const {
#pragma unroll
    for (int n = 0; n < Plan::kKeys / 16; ++n) publish(0, member * (Plan::kKeys / 16) + n, a[n]);
  }

  /// Adds up the members' sums of the walk's step; afterwards the place is free to publish in.
  __device__ void add_up(float (&c)[8][4], int64_t step) const {
    wait_copied(step);
    if constexpr (Plan::kMembers == 2) {
      constexpr int kBytes = 16 * kChunk * 4;
#pragma unroll
      for (int n = 0; n < 8; ++n) *reinterpret_cast<float4*>(slot(member * kBytes, n)) = make_float4(c[n][0], c[n][1], c[n][2], c[n][3]);
      meet(0);
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        const float4 other = *reinterpret_cast<const float4*>(slot((1 - member) * kBytes, n));
        c[n][0] += other.x, c[n][1] += other.y, c[n][2] += other.z, c[n][3] += other.w;
      }
      meet(1);
    }
  }
};

}  // namespace braid::delta_cuda
