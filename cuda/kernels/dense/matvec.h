// Matrices times one vector: what decoding one token is made of, bound by reading the matrices once and by how many launches follow each other.
#pragma once
#include <span>

#include "core/context.h"
#include "ops/projections.h"

namespace braid::cuda {

inline constexpr int kMostProducts = 8;

/// y [n] = act(conv(weight [n, k] · x [k] + bias)), as in ops/projections.h; with `up` silu(weight · x) ∘ (up · x).
struct VectorProduct {
  Tensor weight, y;
  Tensor up = {};    // [n, k]; then there is nothing but weight, up and y
  Tensor bias = {};  // [n]
  Tensor conv = {};  // [n, W], f32, W ≤ 32
  Tensor tail = {};  // [1, n, W − 1], f32, moved on by this token; undefined: zeros
  MapActivation activation = MapActivation::none;
};

/// True when multiply_vector takes these: bf16, k a multiple of 8, addresses that 16-byte accesses may start at.
bool takes_vector(const Tensor& weight, const Tensor& x, const Tensor& y);
/// Up to kMostProducts of the same x in one launch, all with `up` or none. Accumulated in float32 in a fixed order, which the others do not change.
void multiply_vector(Context& ctx, const Tensor& x, std::span<const VectorProduct> products);

}  // namespace braid::cuda
