// The operator contract: what a struct must offer to be run, recorded and differentiated.
//
// An operator is a plain struct. Its Inputs, Outputs and Saved records hold nothing but Tensors (undefined ones where optional
// values are absent); everything else is in Attrs. Inputs and Outputs list their members' names, in order, in `names`.
// How to add one: README.md, and examples/add_operator.cpp, which does it.
#pragma once
#include <array>
#include <concepts>
#include <string_view>

#include "core/context.h"

namespace braid {

#ifdef BRAID_WITH_CUDA
inline constexpr bool kWithCuda = true;
#else
inline constexpr bool kWithCuda = false;
#endif

/// Number of Tensor members of a record.
template <class Record>
inline constexpr size_t kNumTensors = sizeof(Record) / sizeof(Tensor);

/// Pointers to a record's members, in order. A record has at most twelve.
template <class Record>
auto tensors_of(Record& record) {
  constexpr size_t n = kNumTensors<Record>;
  static_assert(n <= 12 && (n == 0 || sizeof(Record) % sizeof(Tensor) == 0), "a record holds at most twelve Tensors and nothing else");
  using Pointer = std::conditional_t<std::is_const_v<Record>, const Tensor*, Tensor*>;
  const auto list = [](auto&... members) { return std::array<Pointer, n>{&members...}; };
  if constexpr (n == 0) return std::array<Pointer, 0>{};
  // clang-format off
  else if constexpr (n == 1) { auto& [a] = record; return list(a); }
  else if constexpr (n == 2) { auto& [a, b] = record; return list(a, b); }
  else if constexpr (n == 3) { auto& [a, b, c] = record; return list(a, b, c); }
  else if constexpr (n == 4) { auto& [a, b, c, d] = record; return list(a, b, c, d); }
  else if constexpr (n == 5) { auto& [a, b, c, d, e] = record; return list(a, b, c, d, e); }
  else if constexpr (n == 6) { auto& [a, b, c, d, e, f] = record; return list(a, b, c, d, e, f); }
  else if constexpr (n == 7) { auto& [a, b, c, d, e, f, g] = record; return list(a, b, c, d, e, f, g); }
  else if constexpr (n == 8) { auto& [a, b, c, d, e, f, g, h] = record; return list(a, b, c, d, e, f, g, h); }
  else if constexpr (n == 9) { auto& [a, b, c, d, e, f, g, h, i] = record; return list(a, b, c, d, e, f, g, h, i); }
  else if constexpr (n == 10) { auto& [a, b, c, d, e, f, g, h, i, j] = record; return list(a, b, c, d, e, f, g, h, i, j); }
  else if constexpr (n == 11) { auto& [a, b, c, d, e, f, g, h, i, j, k] = record; return list(a, b, c, d, e, f, g, h, i, j, k); }
  else { auto& [a, b, c, d, e, f, g, h, i, j, k, l] = record; return list(a, b, c, d, e, f, g, h, i, j, k, l); }
  // clang-format on
}

template <class Record>
concept NamedTensors = requires {
  { Record::names.size() } -> std::convertible_to<size_t>;
}
&&Record::names.size() == kNumTensors<Record>;

/// - allocate checks every shape, dtype and value, and returns outputs to be filled; nothing was written if it throws.
/// - forward_* fills every element of `out` and returns what backward needs. Inputs are contiguous, on the context's device and
///   carry no gradient references. On the CPU floating inputs are f32 or f64: bfloat16 is promoted around the call (apply.h).
/// - backward_* is given d_out (undefined members: no gradient came; treat as zero) and d_in with a tensor to fill for every input
///   whose gradient is wanted (undefined: not wanted). It fills every element of these, or rebinds a member to a d_out tensor of
///   the same shape that holds the very values. `accumulates` (optional) names the index of an input whose gradient backward adds to d_in instead.
/// - forward_cuda and backward_cuda are optional (HasCuda): declared with the others, defined in cuda/ only, never named by a
///   build without CUDA. An operator that has none runs on the host when its context is on a GPU, with copies around it.
template <class Op>
concept Differentiable = NamedTensors<typename Op::Inputs> && NamedTensors<typename Op::Outputs> &&
    requires(Context& ctx, const typename Op::Inputs& in, const typename Op::Attrs& attrs, typename Op::Outputs& out, const typename Op::Saved& saved,
             const typename Op::Outputs& d_out, typename Op::Inputs& d_in) {
  { Op::name } -> std::convertible_to<std::string_view>;
  { Op::allocate(ctx, in, attrs) } -> std::same_as<typename Op::Outputs>;
  { Op::forward_cpu(ctx, in, attrs, out) } -> std::same_as<typename Op::Saved>;
  { Op::backward_cpu(ctx, saved, attrs, d_out, d_in) } -> std::same_as<void>;
};

template <class Op>
concept HasCuda = requires(Context& ctx, const typename Op::Inputs& in, const typename Op::Attrs& attrs, typename Op::Outputs& out,
                           const typename Op::Saved& saved, const typename Op::Outputs& d_out, typename Op::Inputs& d_in) {
  { Op::forward_cuda(ctx, in, attrs, out) } -> std::same_as<typename Op::Saved>;
  { Op::backward_cuda(ctx, saved, attrs, d_out, d_in) } -> std::same_as<void>;
};

/// Index of the input whose gradient an operator accumulates in place (weight gradients in float32), or -1.
template <class Op>
constexpr int accumulated_input() {
  if constexpr (requires { Op::accumulates; }) return Op::accumulates;
  else return -1;
}

}  // namespace braid
