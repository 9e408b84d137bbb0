// Chooses a RowPlan for rows of D elements, and the element type. Device code includes this.
#pragma once
#include <algorithm>
#include <string_view>

#include "core/context.h"
#include "cuda/device/rows.h"
#include "cuda/runtime/check.h"

namespace braid::cuda {

/// A thread holds one 16-byte pack of each operand and the next: small enough that many blocks are resident.
using NarrowRows = device::RowPlan<8, 1, 4, 3>;  // D ≤ 2048
using WideRows = device::RowPlan<8, 4, 1, 1>;    // D ≤ 8192
using AnyRows = device::RowPlan<1, 32, 1, 1>;    // D ≤ 8192, not a multiple of 8

template <class Plan>
device::RowWalk row_walk(int64_t rows, int64_t D) {
  int group = 1;
  while (group * Plan::kPack * Plan::kPacks < D) group *= 2;
  return {rows, D, 1.0f / static_cast<float>(D), group};
}

/// body.operator()<T, Plan>() for the dtype (bf16 or f32), width and whether every tensor is aligned to 16 bytes. Throws Error, in the name of `op`,
/// for others.
template <class Body>
void dispatch_rows(std::string_view op, DType dtype, int64_t D, bool aligned, Body&& body) {
  BRAID_CHECK(dtype == DType::bf16 || dtype == DType::f32, op, ": on a GPU expected bf16 or f32, got ", dtype);
  BRAID_CHECK(D <= WideRows::kMaxD, op, ": on a GPU rows have at most ", WideRows::kMaxD, " elements, got ", D);
  const auto with_plan = [&]<class T>() {
    if (D % 8 != 0 || !aligned) return body.template operator()<T, AnyRows>();
    if (D <= NarrowRows::kMaxD) return body.template operator()<T, NarrowRows>();
    return body.template operator()<T, WideRows>();
  };
  if (dtype == DType::bf16) with_plan.template operator()<device::bf16>();
  else with_plan.template operator()<float>();
}

/// Blocks that walk all rows, `resident` on each multiprocessor of an H100: each has rows to fetch ahead, and partial sums are few.
inline int64_t num_row_blocks(const device::RowWalk& walk, int resident) {
  constexpr int64_t kMultiprocessors = 132;
  const int64_t rows_per_block = 256 / walk.group, wanted = (walk.rows + rows_per_block - 1) / rows_per_block;
  return std::min(wanted, kMultiprocessors * resident);
}

/// The kernel waits for earlier ones (device/overlap.h).
template <class Params>
void launch_rows(Context& ctx, std::string_view name, void (*kernel)(Params), int resident, const Params& params) {
  launch(ctx.stream(), name, kernel, {.grid = static_cast<unsigned>(num_row_blocks(params.walk, resident)), .block = 256, .overlaps = true}, params);
}

}  // namespace braid::cuda
