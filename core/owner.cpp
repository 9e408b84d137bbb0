#include "core/owner.h"

#include <utility>

namespace braid {
namespace {

thread_local std::string_view owner = "activations and scratch";

}  // namespace

std::string_view current_owner() { return owner; }

WithOwner::WithOwner(std::string_view name) : before_(std::exchange(owner, name)) {}
WithOwner::~WithOwner() { owner = before_; }

}  // namespace braid
