// Who makes tensors: what a GPU's accounts of memory are kept by.
#pragma once
#include <string_view>

namespace braid {

/// The name given last on this thread. It decides nothing: it is told when memory runs out, and in memory reports.
std::string_view current_owner();

/// Names the owner of tensors made in a scope. The name must live forever.
class WithOwner {
 public:
  explicit WithOwner(std::string_view owner);
  ~WithOwner();
  WithOwner(const WithOwner&) = delete;
  WithOwner& operator=(const WithOwner&) = delete;

 private:
  std::string_view before_;
};

}  // namespace braid
