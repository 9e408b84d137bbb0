// The tape: what ran, in order, walked backwards.
#pragma once
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "core/context.h"

namespace braid {

class Tape;

/// One recorded operation.
class Node {
 public:
  virtual ~Node() = default;
  virtual std::string_view name() const = 0;
  /// Reads the gradients of its outputs from the tape and adds those of its inputs.
  virtual void backward(Context& ctx, Tape& tape) = 0;
  /// Every tensor kept for backward.
  virtual void visit_saved(FunctionRef<void(const Tensor&)> visit) const = 0;
};

struct SavedBytes {
  std::string op;
  int64_t count = 0;
  int64_t bytes = 0;
};

/// A flat array of nodes, in the order they ran: topological by construction, so backward is one loop from the end. A value that
/// gradients flow through has a slot; its tensor carries the slot's number (GradRef). One backward pass per tape.
class Tape {
 public:
  Tape();
  Tape(const Tape&) = delete;
  Tape& operator=(const Tape&) = delete;

  /// `value` as a leaf. Its gradient is added into `grad` (which stays as it is when no gradient comes), or kept by the tape when
  /// `grad` is undefined. With a `key`, the same key gives the same leaf again.
  Tensor leaf(const Tensor& value, const Tensor& grad = {}, const void* key = nullptr);

  /// Gradients of `root` (a scalar, unless `seed` gives the gradient to start from) into every leaf. Nodes and what they saved are
  /// released on the way.
  void backward(Context& ctx, const Tensor& root, const Tensor& seed = {});
  /// The same from several values at once.
  void backward(Context& ctx, const std::vector<Tensor>& roots, const std::vector<Tensor>& seeds);

  /// Gradient of a leaf after backward; undefined when none came.
  Tensor grad(const Tensor& leaf) const;

  /// Bytes kept for backward, by operator, largest first; a storage shared by several is counted once.
  std::vector<SavedBytes> saved_bytes() const;
  int64_t num_nodes() const { return static_cast<int64_t>(nodes_.size()); }

  // For nodes:
  /// The slot of a tensor; -1 when none. Throws Error when it belongs to another tape.
  int64_t slot_of(const Tensor& tensor) const;
  /// Gives `tensor` a slot of its own.
  Tensor track(const Tensor& tensor);
  void push(std::unique_ptr<Node> node);
  /// The gradient gathered for a slot, taken out of the tape; undefined when none came.
  Tensor take_grad(int64_t slot);
  /// Adds to the gradient of a slot (no-op for slot -1).
  void accumulate(Context& ctx, int64_t slot, const Tensor& grad);
  /// The caller-owned buffer of a leaf's gradient, or undefined.
  Tensor leaf_buffer(int64_t slot) const;

 private:
  struct Slot {
    Shape shape;
    DType dtype;
    Tensor grad;
    bool is_leaf = false;
    bool caller_owned = false;
  };
  uint64_t serial_;
  std::vector<Slot> slots_;
  std::vector<std::unique_ptr<Node>> nodes_;
  std::unordered_map<const void*, Tensor> leaves_;
};

}  // namespace braid
