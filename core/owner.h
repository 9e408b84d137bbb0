// Who makes tensors: what a GPU's accounts of memory are kept by, and what an error says when memory runs out.
#pragma once
#include <string_view>

namespace braid {

/// What a model in training holds all the time.
inline constexpr std::string_view kOwnerParameters = "parameters", kOwnerGradients = "gradients", kOwnerCopies = "bf16 copies of parameters",
                                  kOwnerMoments = "optimizer moments";

/// The owner named last on this thread, else the operator that runs, else "activations and scratch". It decides nothing: it is told when memory
/// runs out, and in memory reports.
std::string_view current_owner();

/// What needs less memory than what this thread is doing. `gradients_exist`: it is training, though what runs now may not be recorded.
std::string_view advice_on_memory(bool gradients_exist);

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

/// Names the operator that runs in a scope: the owner of what it makes, unless a WithOwner says more. The name must live forever.
class WithOperator {
 public:
  /// `trains`: it is recorded, or is the backward of what was.
  WithOperator(std::string_view name, bool trains);
  ~WithOperator();
  WithOperator(const WithOperator&) = delete;
  WithOperator& operator=(const WithOperator&) = delete;

 private:
  std::string_view name_before_;
  bool trains_before_;
};

}  // namespace braid
