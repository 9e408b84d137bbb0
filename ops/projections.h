// Several linear maps of one x, each with what follows the projections of a mixer: a short convolution and an activation.
//
//   y_i = norm_i(act_i(conv_i(x · weight_iᵀ + bias_i)))
//
// Made of ops/linear.h, ops/short_conv.h and ops/elementwise.h, one after the other; these define values and gradients. One token in bf16 on a
// GPU, without a tape, takes one launch for all of them (cuda/kernels/dense): decoding is bound by how many launches follow each other.
#pragma once
#include <span>
#include <vector>

#include "core/context.h"
#include "core/sequences.h"

namespace braid {

enum class MapActivation : uint8_t { none, silu, sigmoid };

struct ProjectionMap {
  Tensor weight = {};      // [out, in]; undefined: no map, and no y
  Tensor bias = {};        // [out], optional
  Tensor conv = {};        // [out, W], accumulator type, optional
  Tensor* tail = nullptr;  // with conv and a state: the last W − 1 inputs [S, out, W − 1], undefined at the start; updated, in place on one launch
  MapActivation activation = MapActivation::none;
  int64_t norm_dim = 0;  // with conv and no tail: heads of so many channels are then divided by their length (ops/short_conv.h)
};

/// x [N, in] → y_i [N, out_i], in the order of the maps.
std::vector<Tensor> project_each(Context& ctx, const Tensor& x, const Sequences& seqs, std::span<const ProjectionMap> maps);
/// silu(x · gateᵀ) ∘ (x · upᵀ), x [N, in], gate and up [out, in] → [N, out].
Tensor project_swiglu(Context& ctx, const Tensor& x, const Tensor& gate, const Tensor& up);

/// With CUDA only: what the two above do with one launch; false (nothing done) where there is none for these.
bool project_each_cuda(Context& ctx, const Tensor& x, const Sequences& seqs, std::span<const ProjectionMap> maps, std::span<Tensor> ys);
bool project_swiglu_cuda(Context& ctx, const Tensor& x, const Tensor& gate, const Tensor& up, Tensor& y);

}  // namespace braid
