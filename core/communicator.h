// Collective communication between the ranks of a run.
#pragma once
#include <memory>

#include "core/context.h"

namespace braid {

enum class Reduction : uint8_t { sum, max };

/// Ranks that work together. Collectives are called by every rank in the same order, with tensors of the same shape and dtype
/// (contiguous). They are ordered on the context's stream; errors of another rank surface as Error here.
class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual void all_reduce(Context& ctx, const Tensor& inout, Reduction reduction) = 0;
  /// `out` gets this rank's 1/size-th part of the sum over ranks of `in`; in.numel() = size · out.numel().
  virtual void reduce_scatter(Context& ctx, const Tensor& in, const Tensor& out) = 0;
  /// out.numel() = size · in.numel(), in the order of ranks.
  virtual void all_gather(Context& ctx, const Tensor& in, const Tensor& out) = 0;
  virtual void broadcast(Context& ctx, const Tensor& inout, int root) = 0;
  virtual void send(Context& ctx, const Tensor& in, int to) = 0;
  virtual void receive(Context& ctx, const Tensor& out, int from) = 0;
  /// Calls between begin_group and end_group may be carried out together.
  virtual void begin_group() {}
  virtual void end_group() {}
  virtual void barrier() = 0;
};

/// One rank: every collective is a copy.
std::unique_ptr<Communicator> make_single_process_communicator();

}  // namespace braid
