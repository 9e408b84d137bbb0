// Which kernels a call of attention takes.
#pragma once

namespace braid::attention {

/// plain: anything; mma: bf16 on tensor cores of sm_80 and later; hopper: the same on compute capability 9.0. Each needs more than the one before.
enum class Path { plain, mma, hopper };

/// While it lives, calls of this thread take no path beyond `last`: tests hold the others to the oracle too.
class PathLimit {
 public:
  explicit PathLimit(Path last);
  ~PathLimit();
  PathLimit(const PathLimit&) = delete;
  PathLimit& operator=(const PathLimit&) = delete;

 private:
  Path before_;
};

}  // namespace braid::attention
