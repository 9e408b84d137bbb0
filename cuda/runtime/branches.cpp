// Branches of a graph being recorded: the stream's capture is set back to where they part, and set on from where all of them end.
#include "ops/branches.h"

#include <map>
#include <mutex>
#include <vector>

#include "cuda/runtime/backend.h"
#include "cuda/runtime/check.h"

namespace braid {
namespace {

using Nodes = std::vector<cudaGraphNode_t>;

struct Parting {
  Nodes begin;  // what every part follows
  Nodes ends;   // what follows all parts
};

/// By stream: one recording goes on at a time on each.
std::map<void*, Parting>& partings() {
  static std::map<void*, Parting> all;
  return all;
}
std::mutex mutex;

/// What the next recorded work would follow; false when the stream does not record.
bool followed(Context& ctx, Nodes& nodes) {
  cudaStreamCaptureStatus status;
  const cudaGraphNode_t* dependencies = nullptr;
  size_t count = 0;
  cuda::check(cudaStreamGetCaptureInfo(cuda::native(ctx.stream()), &status, nullptr, nullptr, &dependencies, nullptr, &count),
              "cudaStreamGetCaptureInfo");
  if (status != cudaStreamCaptureStatusActive) return false;
  nodes.assign(dependencies, dependencies + count);
  return true;
}

cudaError_t follow(Context& ctx, Nodes& nodes) {
  return cudaStreamUpdateCaptureDependencies(cuda::native(ctx.stream()), nodes.data(), nullptr, nodes.size(), cudaStreamSetCaptureDependencies);
}

/// Ends the part that is being recorded. One that did nothing ends where it began: no need to wait for it.
void end_part(Context& ctx, Parting& parting) {
  Nodes last;
  followed(ctx, last);
  if (last != parting.begin) parting.ends.insert(parting.ends.end(), last.begin(), last.end());
}

}  // namespace

bool begin_branches_cuda(Context& ctx) {
  Nodes begin;
  if (!followed(ctx, begin)) return false;
  std::lock_guard lock(mutex);
  const bool fresh = partings().emplace(ctx.stream().native(), Parting{std::move(begin), {}}).second;
  BRAID_CHECK(fresh, "cuda: branches of a graph cannot be within branches");
  cuda::backend().hold_arena(true);  // memory that one part gives back must not be another's, which runs beside it
  return true;
}

void next_branch_cuda(Context& ctx) {
  std::lock_guard lock(mutex);
  Parting& parting = partings().at(ctx.stream().native());
  end_part(ctx, parting);
  cuda::check(follow(ctx, parting.begin), "cudaStreamUpdateCaptureDependencies");
}

void end_branches_cuda(Context& ctx) noexcept {
  std::lock_guard lock(mutex);
  const auto found = partings().find(ctx.stream().native());
  if (found == partings().end()) return;
  try {
    end_part(ctx, found->second);
    Nodes& ends = found->second.ends.empty() ? found->second.begin : found->second.ends;
    follow(ctx, ends);
  } catch (const Error&) {  // the recording failed; whoever ends it says so
  }
  partings().erase(found);
  cuda::backend().hold_arena(false);
}

}  // namespace braid
