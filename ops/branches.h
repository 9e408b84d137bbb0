// Parts of a computation that do not depend on each other.
#pragma once
#include "core/context.h"

namespace braid {

/// What is done between construction, next() and destruction are parts that read nothing of each other. While a graph is recorded on the context's
/// stream they become branches that a replay runs side by side; otherwise nothing changes. Products through cuBLASLt share a workspace and must not
/// be in two parts: only bf16 products with one row (decoding) may be.
class Branches {
 public:
  explicit Branches(Context& ctx, bool wanted = true);
  ~Branches();
  Branches(const Branches&) = delete;
  Branches& operator=(const Branches&) = delete;
  /// The next part begins.
  void next();

 private:
  Context& ctx_;
  bool recording_ = false;
};

/// With CUDA only (cuda/runtime): false when the stream does not record.
bool begin_branches_cuda(Context& ctx);
void next_branch_cuda(Context& ctx);
void end_branches_cuda(Context& ctx) noexcept;

}  // namespace braid
