#include "autograd/tape.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <set>
#include <utility>

namespace braid {

Tape::Tape() {
  static std::atomic<uint64_t> next_serial{1};
  serial_ = next_serial.fetch_add(1);
}

Tensor Tape::leaf(const Tensor& value, const Tensor& grad, const void* key) {
  if (key) {
    if (const auto found = leaves_.find(key); found != leaves_.end()) return found->second;
  }
  BRAID_CHECK(!grad || grad.numel() == value.numel(), "tape: the gradient of a leaf ", value.shape(), " cannot have shape ", grad.shape());
  Tensor tracked = track(value);
  Slot& slot = slots_.back();
  slot.is_leaf = true;
  slot.caller_owned = grad.defined();
  slot.grad = grad;
  if (key) leaves_.emplace(key, tracked);
  return tracked;
}

Tensor Tape::track(const Tensor& tensor) {
  slots_.push_back({.shape = tensor.shape(), .dtype = tensor.dtype(), .grad = {}});
  return tensor.with_grad_ref({serial_, static_cast<int64_t>(slots_.size()) - 1});
}

int64_t Tape::slot_of(const Tensor& tensor) const {
  if (!tensor.defined() || !tensor.grad_ref().tracked()) return -1;
  BRAID_CHECK(tensor.grad_ref().tape == serial_, "tape: a tensor ", tensor.shape(), " of another tape cannot be used here; detach it first");
  return tensor.grad_ref().slot;
}

void Tape::push(std::unique_ptr<Node> node) { nodes_.push_back(std::move(node)); }

Tensor Tape::take_grad(int64_t slot) {
  if (slot < 0) return {};
  return slots_[slot].is_leaf ? slots_[slot].grad : std::exchange(slots_[slot].grad, {});
}

Tensor Tape::leaf_buffer(int64_t slot) const { return slot >= 0 && slots_[slot].caller_owned ? slots_[slot].grad : Tensor{}; }

void Tape::accumulate(Context& ctx, int64_t slot_idx, const Tensor& grad) {
  if (slot_idx < 0 || !grad) return;
  Slot& slot = slots_[slot_idx];
  if (!slot.grad) {
    slot.grad = converted(ctx, grad.detached(), slot.dtype).view(slot.shape);
    return;
  }
  // A gradient may be shared with another value's (a sum passes the same one to both sides): then add into a copy.
  if (!slot.caller_owned && slot.grad.storage().use_count() > 1) slot.grad = copied(ctx, slot.grad);
  convert_into(ctx, slot.grad, grad, true);
}

void Tape::backward(Context& ctx, const Tensor& root, const Tensor& seed) {
  Tensor start = seed;
  if (!start) {
    BRAID_CHECK(root.numel() == 1, "backward: without a gradient to start from the value must be a scalar, got shape ", root.shape());
    start = converted(ctx, from_vector<float>(ctx, {1.0f}, root.shape()), root.dtype());
  }
  backward(ctx, std::vector<Tensor>{root}, {start});
}

void Tape::backward(Context& ctx, const std::vector<Tensor>& roots, const std::vector<Tensor>& seeds) {
  BRAID_CHECK(roots.size() == seeds.size(), "backward: ", roots.size(), " values need as many gradients, got ", seeds.size());
  WithTape silent(ctx, nullptr);
  for (size_t i = 0; i < roots.size(); ++i) {
    if (!seeds[i]) continue;
    BRAID_CHECK(slot_of(roots[i]) >= 0, "backward: value ", i, " does not depend on any leaf");
    accumulate(ctx, slot_of(roots[i]), seeds[i]);
  }
  while (!nodes_.empty()) {
    nodes_.back()->backward(ctx, *this);
    nodes_.pop_back();
  }
}

Tensor Tape::grad(const Tensor& leaf) const {
  const int64_t slot = slot_of(leaf);
  BRAID_CHECK(slot >= 0 && slots_[slot].is_leaf, "tape: only leaves keep their gradient");
  return slots_[slot].grad;
}

std::vector<SavedBytes> Tape::saved_bytes() const {
  std::map<std::string_view, SavedBytes> by_op;
  std::set<const Storage*> seen;
  for (const auto& node : nodes_) {
    SavedBytes& entry = by_op[node->name()];
    entry.op = node->name();
    ++entry.count;
    node->visit_saved([&](const Tensor& tensor) {
      if (tensor && seen.insert(tensor.storage().get()).second) entry.bytes += tensor.storage()->size_bytes();
    });
  }
  std::vector<SavedBytes> result;
  for (auto& [name, entry] : by_op) result.push_back(std::move(entry));
  std::stable_sort(result.begin(), result.end(), [](const SavedBytes& a, const SavedBytes& b) { return a.bytes > b.bytes; });
  return result;
}

}  // namespace braid
