#include <set>

#include "cuda/kernels/adamw/adamw.h"
#include "cuda/runtime/blas.h"
#include "ops/embedding.h"
#include "ops/gated_rms_norm.h"
#include "ops/gates.h"
#include "ops/l2_norm.h"
#include "ops/linear.h"
#include "ops/linear_cross_entropy.h"
#include "ops/repeat_heads.h"
#include "ops/rms_norm.h"
#include "ops/rotary.h"
#include "ops/short_conv.h"
#include "ops/swiglu.h"
#include "train/cli/bench_gpu/make.h"

namespace braid::cli {
namespace {

constexpr int64_t N = kBenchTokens, kHidden = 2048, kVocab = 32000;
constexpr double kElements = 1.0 * N * kHidden;

template <Differentiable Op>
void add(std::vector<GpuCase>& cases, std::string shape, std::function<GpuRun(Context&, Values&)> make) {
  cases.push_back({std::string(Op::name), std::move(shape), [make = std::move(make)](Context& ctx) {
                     Values values(ctx);
                     return make(ctx, values);
                   }});
}

void add_norms(std::vector<GpuCase>& cases) {
  add<RmsNorm>(cases, "[32768, 2048]", [](Context& ctx, Values& values) {
    return make_run<RmsNorm>(ctx, {values.uniform({N, kHidden}), values.f32({kHidden}), {}}, {}, 4 * kElements);
  });
  add<RmsNorm>(cases, "[32768, 2048], residual", [](Context& ctx, Values& values) {
    GpuRun run = make_run<RmsNorm>(ctx, {values.uniform({N, kHidden}), values.f32({kHidden}), values.uniform({N, kHidden})}, {}, 5 * kElements);
    const double tensor = 2 * kElements;
    run.cost.backward_bytes = 3 * tensor;  // sum and d_y are read, d_x is also d_residual
    run.gradient_bytes -= static_cast<int64_t>(tensor);
    return run;
  });
  for (int64_t D : {128, 512})
    add<GatedRmsNorm>(cases, "[32768, " + std::to_string(kHidden / D) + ", " + std::to_string(D) + "], swish", [D](Context& ctx, Values& values) {
      const Shape shape = {N, kHidden / D, D};
      return make_run<GatedRmsNorm>(ctx, {values.uniform(shape), values.uniform(shape), values.f32({D})}, {}, 8 * kElements);
    });
  add<L2Norm>(cases, "[32768, 16, 128]", [](Context& ctx, Values& values) {
    return make_run<L2Norm>(ctx, {values.uniform({N, 16, 128})}, {}, 4 * kElements);
  });
}

void add_convolutions(std::vector<GpuCase>& cases) {
  const auto add_conv = [&](const Split& split, int64_t head) {  // divided by their length: heads of so many channels; 0: none
    const std::string heads = head ? "heads of " + std::to_string(head) + ", " : "";
    add<ShortConv>(cases, "D 2048, width 4, silu, " + heads + split.name, [split, head](Context& ctx, Values& values) {
      return make_run<ShortConv>(ctx, {values.uniform({N, kHidden}), values.f32({kHidden, 4}), {}},
                                 {.seqs = split.seqs, .activation = ConvActivation::silu, .norm_dim = head}, 12 * kElements);
    });
  };
  for (const Split& split : token_splits()) add_conv(split, 0);
  for (const int64_t head : {64, 128, 256}) add_conv(token_splits().front(), head);
  add<Rotary>(cases, "H 16 D 128, 16x2048", [](Context& ctx, Values& values) {
    GpuRun run = make_run<Rotary>(ctx, {values.uniform({N, 16, 128})}, {.seqs = Sequences::dense(16, 2048)}, 3 * kElements);
    run.cost.backward_bytes = 4 * kElements;  // x is not needed
    return run;
  });
}

void add_elementwise(std::vector<GpuCase>& cases) {
  add<SwiGlu>(cases, "[32768, 5632]", [](Context& ctx, Values& values) {
    return make_run<SwiGlu>(ctx, {values.uniform({N, 5632}), values.uniform({N, 5632})}, {}, 5.0 * N * 5632);
  });
  add<HgrnGate>(cases, "[32768, 2048]", [](Context& ctx, Values& values) {
    return make_run<HgrnGate>(ctx, {values.uniform({N, kHidden}), values.f32({kHidden}, 0.1, 0.9)}, {}, 10 * kElements);
  });
  add<GlaGate>(cases, "[32768, 2048]", [](Context& ctx, Values& values) {
    return make_run<GlaGate>(ctx, {values.uniform({N, kHidden})}, {.normalizer = 16, .clamp_min = {}}, 5 * kElements);
  });
  add<GdnGate>(cases, "[32768, 16]", [](Context& ctx, Values& values) {
    return make_run<GdnGate>(ctx, {values.uniform({N, 16}), values.f32({16}, 0, 2), values.f32({16})}, {}, 6.0 * N * 16);
  });
  add<RepeatHeads>(cases, "[32768, 8, 128] x 2", [](Context& ctx, Values& values) {
    GpuRun run = make_run<RepeatHeads>(ctx, {values.uniform({N, 8, 128})}, {.groups = 2}, 0);
    run.cost.backward_bytes = run.cost.forward_bytes;
    return run;
  });
}

double num_distinct(Context& ctx, const Tensor& tokens) {
  const std::vector<int64_t> values = to_vector<int64_t>(ctx, tokens);
  return static_cast<double>(std::set<int64_t>(values.begin(), values.end()).size());
}

void add_linear(std::vector<GpuCase>& cases) {
  add<Linear>(cases, "[32768, 2048] x [2048, 2048]", [](Context& ctx, Values& values) {
    return make_run<Linear>(ctx, {values.uniform({N, kHidden}), values.uniform({kHidden, kHidden}, -0.05, 0.05), {}}, {}, 2 * kElements * kHidden);
  });
}

void add_vocabulary(std::vector<GpuCase>& cases) {
  add<Embedding>(cases, "[32000, 2048], 32768 tokens", [](Context& ctx, Values& values) {
    const Tensor tokens = values.indices(N, kVocab);
    GpuRun run = make_run<Embedding>(ctx, {tokens, values.uniform({kVocab, kHidden})}, {}, 0);
    const double rows = num_distinct(ctx, tokens) * kHidden;
    run.cost.forward_bytes = 8.0 * N + 2 * rows + 2 * kElements;
    run.cost.backward_bytes = 8.0 * N + 2 * kElements + 8 * rows;  // d_weight is read and written, in float32
    return run;
  });
  add<LinearCrossEntropy>(cases, "[32768, 2048] x [32000, 2048]", [](Context& ctx, Values& values) {
    const Tensor x = values.uniform({N, kHidden}), weight = values.uniform({kVocab, kHidden}, -0.05, 0.05);
    return make_run<LinearCrossEntropy>(ctx, {x, weight, values.indices(N, kVocab)}, {}, 2 * kElements * kVocab);
  });
}

/// Parameters of 4 Mi elements each, as AdamW's tables name them.
struct AdamWState {
  std::vector<Tensor> values, grads, m, v, compute;
  cuda::AdamWTables tables;
};

AdamWState make_adamw(Context& ctx, int64_t count, int64_t size, int64_t piece) {
  AdamWState state;
  Values values(ctx);
  std::vector<int64_t> slots, pieces;
  const auto address = [](const Tensor& tensor) { return static_cast<int64_t>(reinterpret_cast<intptr_t>(tensor.raw())); };
  for (int64_t i = 0; i < count; ++i) {
    state.values.push_back(values.f32({size}));
    state.grads.push_back(values.f32({size}, -1e-3, 1e-3));
    state.m.push_back(Tensor::zeros(ctx, {size}, DType::f32));
    state.v.push_back(Tensor::zeros(ctx, {size}, DType::f32));
    state.compute.push_back(Tensor::empty(ctx, {size}, DType::bf16));
    slots.insert(slots.end(), {address(state.values[i]), address(state.grads[i]), address(state.m[i]), address(state.v[i]), address(state.compute[i]),
                               cuda::kAdamWDecays | cuda::kAdamWAligned});
    for (int64_t begin = 0; begin < size; begin += piece) pieces.insert(pieces.end(), {i, begin, begin + piece});
  }
  state.tables = {from_vector(ctx, slots, {count, 6}), from_vector(ctx, pieces, {count * size / piece, 3})};
  return state;
}

void add_optimizer(std::vector<GpuCase>& cases) {
  constexpr int64_t kCount = 32, kSize = 1 << 22, kPiece = 1 << 14;
  constexpr double kParameters = 1.0 * kCount * kSize;
  const auto make = [=](Context& ctx, double bytes, double flops, auto call) {
    GpuRun run;
    run.cost = {bytes * kParameters, 0, flops * kParameters, 0};
    const auto state = std::make_shared<AdamWState>(make_adamw(ctx, kCount, kSize, kPiece));
    run.forward = [state, call](Context& c, int) { call(c, state->tables); };
    return run;
  };
  cases.push_back({"adamw", "134M parameters in 32, f32 master, bf16 copy", [=](Context& ctx) {
                     return make(ctx, 30, 12, [](Context& c, const cuda::AdamWTables& tables) {
                       cuda::adamw_step(c, tables, {1, 0.9f, 0.1f, 0.95f, 0.05f, 0.9999f, 1e-3f, 1, 1e-8f});
                     });
                   }});
  cases.push_back({"gradient_norm", "134M parameters in 32", [=](Context& ctx) {
                     return make(ctx, 4, 2, [](Context& c, const cuda::AdamWTables& tables) { cuda::squared_norm(c, tables); });
                   }});
}

}  // namespace

std::vector<GpuCase> row_cases() {
  std::vector<GpuCase> cases;
  add_norms(cases);
  add_convolutions(cases);
  add_elementwise(cases);
  add_linear(cases);
  add_vocabulary(cases);
  add_optimizer(cases);
  return cases;
}

std::vector<GpuCase> ceiling_cases() {
  std::vector<GpuCase> cases;
  cases.push_back({"device_copy", "1 GiB read, 1 GiB written", [](Context& ctx) {
                     const Tensor from = Tensor::zeros(ctx, {1 << 30}, DType::u8), to = Tensor::empty(ctx, {1 << 30}, DType::u8);
                     GpuRun run;
                     run.cost = {2147483648.0, 0, 0, 0};
                     run.forward = [from, to](Context& c, int) { copy_into(c, to, from); };
                     return run;
                   }});
  cases.push_back({"matrix_product", "8192 x 8192 x 8192", [](Context& ctx) {
                     constexpr int64_t kSize = 8192;
                     Values values(ctx);
                     const Tensor a = values.uniform({kSize, kSize}), b = values.uniform({kSize, kSize}), c = values.uniform({kSize, kSize});
                     GpuRun run;
                     run.cost = {3.0 * static_cast<double>(a.nbytes()), 0, 2.0 * kSize * kSize * kSize, 0};
                     run.forward = [=](Context& context, int) { cuda::multiply(context, {.m = kSize, .n = kSize, .k = kSize}, a, b, c); };
                     return run;
                   }});
  return cases;
}

}  // namespace braid::cli
