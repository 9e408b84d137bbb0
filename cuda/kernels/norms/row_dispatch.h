// Chooses a RowPlan for rows of D elements, and the element type. Device code includes this.
#pragma once
#include <string_view>

#include "core/tensor.h"
#include "cuda/device/rows.h"

namespace braid::cuda {

using NarrowRows = device::RowPlan<8, 8, 1>;   // D ≤ 64
using MiddleRows = device::RowPlan<32, 8, 4>;  // D ≤ 1024
using WideRows = device::RowPlan<256, 8, 4>;   // D ≤ 8192
using AnyRows = device::RowPlan<256, 1, 32>;   // D ≤ 8192, not a multiple of 8

/// body.operator()<T, Plan>() for the dtype (bf16 or f32), width and whether every tensor is aligned to 16 bytes. Throws Error, in the name of `op`,
/// for others.
template <class Body>
void dispatch_rows(std::string_view op, DType dtype, int64_t D, bool aligned, Body&& body) {
  BRAID_CHECK(dtype == DType::bf16 || dtype == DType::f32, op, ": on a GPU expected bf16 or f32, got ", dtype);
  BRAID_CHECK(D <= WideRows::kMaxD, op, ": on a GPU rows have at most ", WideRows::kMaxD, " elements, got ", D);
  const auto with_plan = [&]<class T>() {
    if (D % 8 != 0 || !aligned) return body.template operator()<T, AnyRows>();
    if (D <= NarrowRows::kMaxD) return body.template operator()<T, NarrowRows>();
    if (D <= MiddleRows::kMaxD) return body.template operator()<T, MiddleRows>();
    return body.template operator()<T, WideRows>();
  };
  if (dtype == DType::bf16) with_plan.template operator()<device::bf16>();
  else with_plan.template operator()<float>();
}

/// Blocks of a kernel that walks all rows and keeps one partial sum a block: enough to fill the chip, few enough to add up.
inline int64_t num_row_blocks(int64_t rows, int rows_per_block) {
  const int64_t wanted = (rows + rows_per_block - 1) / rows_per_block;
  return wanted < 528 ? wanted : 528;
}

}  // namespace braid::cuda
