#include "core/owner.h"

#include <utility>

namespace braid {
namespace {

struct Asking {
  std::string_view owner, op = "activations and scratch";
  bool trains = false;
};
thread_local Asking asking;

}  // namespace

std::string_view current_owner() { return asking.owner.empty() ? asking.op : asking.owner; }

std::string_view advice_on_memory(bool gradients_exist) {
  for (const std::string_view held : {kOwnerParameters, kOwnerGradients, kOwnerCopies, kOwnerMoments})
    if (asking.owner == held) return "a smaller model needs less";
  if (asking.trains || gradients_exist) return "fewer tokens per micro-batch or more recompute need less";
  return "a shorter context or a smaller batch needs less";
}

WithOwner::WithOwner(std::string_view name) : before_(std::exchange(asking.owner, name)) {}
WithOwner::~WithOwner() { asking.owner = before_; }

WithOperator::WithOperator(std::string_view name, bool trains)
    : name_before_(std::exchange(asking.op, name)), trains_before_(std::exchange(asking.trains, trains)) {}
WithOperator::~WithOperator() {
  asking.op = name_before_;
  asking.trains = trains_before_;
}

}  // namespace braid
