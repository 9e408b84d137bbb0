// How the short convolution is cut: tiles of tokens, blocks of channels.
#pragma once
#include <algorithm>

#include "cuda/kernels/operands.h"
#include "cuda/kernels/short_conv/window.h"
#include "cuda/runtime/check.h"
#include "ops/short_conv.h"

namespace braid::cuda {

inline constexpr int64_t kConvTokens = 64;
inline constexpr int kConvThreads = 128, kMaxConvWidth = 16;
/// Tokens fetched before the first is used, in a tile that may hold several sequences and in one inside a sequence.
inline constexpr int kConvAhead = 4, kConvInsideAhead = 8;

inline device::ConvInputs conv_inputs(Context& ctx, const Tensor& x, const Tensor& weight, const Tensor& initial_state,
                                      const ShortConv::Attrs& attrs) {
  require_kernel_dtype(ShortConv::name, x.dtype());
  BRAID_CHECK(weight.size(1) <= kMaxConvWidth, ShortConv::name, ": on a GPU weight has a width W of at most ", kMaxConvWidth, ", got ",
              weight.shape());
  return {.x = x.raw(),
          .weight = weight.data<float>(),
          .initial_state = address_of<float>(initial_state),
          .cu_seqlens = attrs.seqs.on_device(ctx).data<int64_t>(),
          .N = x.size(0),
          .D = x.size(1),
          .S = attrs.seqs.count(),
          .W = static_cast<int>(weight.size(1)),
          .silu = attrs.activation == ConvActivation::silu,
          .head_lanes = 0};
}

/// Whether heads of norm_dim channels are divided by their length in the same launch: bf16, a head within a warp of threads of `width` channels.
inline bool fuses_norm(DType dtype, int64_t W, int64_t D, int64_t norm_dim, bool aligned, int width) {
  const int64_t lanes = norm_dim / width;
  return dtype == DType::bf16 && W <= 4 && aligned && D % (32 * width) == 0 && norm_dim % width == 0 && (lanes == 8 || lanes == 16 || lanes == 32);
}
/// The same of attributes without the division.
inline ShortConv::Attrs without_norm(ShortConv::Attrs attrs) {
  attrs.norm_dim = 0;
  return attrs;
}

inline int64_t num_conv_tiles(int64_t N) { return (N + kConvTokens - 1) / kConvTokens; }

inline LaunchConfig conv_config(int64_t N, int64_t D, int width) {
  const int64_t channels = int64_t{kConvThreads} * width;
  return {.grid = dim3(static_cast<unsigned>(num_conv_tiles(N)), static_cast<unsigned>((D + channels - 1) / channels)),
          .block = kConvThreads,
          .overlaps = true};
}

/// body.operator()<T, taps, width>(): taps is W rounded up to 4 or 16; a thread carries `width` channels, at most `most_width`.
template <int most_width, class Body>
void dispatch_conv(DType dtype, int W, int64_t D, bool aligned, Body&& body) {
  const auto with_type = [&]<class T>() {
    constexpr int wide = most_width < device::kPackSize<T> ? most_width : device::kPackSize<T>;
    if (W > 4) body.template operator()<T, kMaxConvWidth, 1>();
    else if (aligned && D % wide == 0) body.template operator()<T, 4, wide>();
    else body.template operator()<T, 4, 1>();
  };
  if (dtype == DType::bf16) with_type.template operator()<device::bf16>();
  else with_type.template operator()<float>();
}

}  // namespace braid::cuda
