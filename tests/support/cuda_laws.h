// The laws of an operator's CUDA kernels: equal to the f64 CPU oracle on the same (rounded) inputs, over all and block by block; every
// element written, none outside; the same bits twice. They are skipped on a machine without a GPU.
#pragma once
#include <gtest/gtest.h>

#include <cmath>

#include "cuda/runtime/runtime.h"
#include "tests/support/op_case.h"

namespace braid::testing {

/// Error allowed to a tensor, as rms(error) / rms(reference) (design: quality, law 3).
inline double cuda_tolerance(DType dtype, bool is_gradient, std::string_view name) {
  if (dtype != DType::bf16) return 1e-4;
  if (!is_gradient) return 4e-3;
  const bool is_main = name == "q" || name == "k" || name == "v" || name == "x";
  return is_main ? 6e-3 : 1e-2;
}

/// How a tensor is cut into blocks: a state [S, H, …] by sequence and head; else 64 rows, of each head where the second of three dimensions
/// counts heads or, in a gate [N, H], the second of two.
enum class BlockKind : uint8_t { tokens, gate };

/// The largest error of a block over that block's rms, or a quarter of the whole tensor's where the block is smaller: a tile that is wrong
/// cannot hide in an average.
double worst_block_error(Context& ctx, const Tensor& actual, const Tensor& expected, BlockKind kind);

/// [N, H]: beta, a decay per head, a logarithm of sums (not the [N, D] of operators that know no heads).
template <class Record>
BlockKind kind_of_blocks(std::string_view name) {
  const bool has_heads =
      std::any_of(Record::names.begin(), Record::names.end(), [](std::string_view other) { return other == "q" || other == "lse"; });
  return has_heads && (name == "beta" || name == "log_decay" || name == "lse") ? BlockKind::gate : BlockKind::tokens;
}

template <class Record>
void expect_close_on_cuda(Context& gpu, const Record& actual, const Record& oracle, DType dtype, bool is_gradient) {
  Context host;
  const auto a = tensors_of(actual), b = tensors_of(oracle);
  for (size_t i = 0; i < a.size(); ++i) {
    ASSERT_EQ(a[i]->defined(), b[i]->defined()) << Record::names[i];
    if (!a[i]->defined() || a[i]->numel() == 0) continue;
    const double tolerance = cuda_tolerance(dtype, is_gradient, Record::names[i]);
    const Tensor local = from_vector(host, to_vector<double>(gpu, *a[i]), a[i]->shape());
    EXPECT_LE(relative_error(host, local, *b[i]), tolerance) << (is_gradient ? "d_" : "") << Record::names[i];
    EXPECT_LE(worst_block_error(host, local, *b[i], kind_of_blocks<Record>(Record::names[i])), 4 * tolerance)
        << "a block of " << (is_gradient ? "d_" : "") << Record::names[i];
  }
}

template <class Record>
Record on_device(Context& gpu, Record record) {
  for (Tensor* tensor : tensors_of(record))
    if (tensor->defined()) *tensor = copied(gpu, *tensor);
  gpu.synchronize();
  return record;
}

template <class Op>
void law_cuda(const OpCase<Op>& op_case, const InputKinds& kinds, DType dtype) {
  if (cuda::num_devices() == 0) GTEST_SKIP() << "no GPU";
  const int64_t damaged_before = num_damaged_storages();
  {
    Context host(0), gpu = cuda::make_context();
    gpu.guarded_allocations = true;
    const typename Op::Inputs rounded = in_dtype<Op>(host, case_inputs(host, op_case), dtype, kinds);
    const OpRun<Op> oracle = run_op<Op>(host, in_dtype<Op>(host, rounded, DType::f64, kinds), op_case.attrs);
    const typename Op::Inputs in = on_device(gpu, rounded);
    const OpRun<Op> run = run_op<Op>(gpu, in, op_case.attrs), again = run_op<Op>(gpu, in, op_case.attrs);
    expect_close_on_cuda(gpu, run.out, oracle.out, dtype, false);
    expect_close_on_cuda(gpu, run.d_in, oracle.d_in, dtype, true);
    const auto outs = tensors_of(run.out), outs_again = tensors_of(again.out);
    for (size_t i = 0; i < outs.size(); ++i) EXPECT_TRUE(same_bits(gpu, *outs[i], *outs_again[i])) << Op::Outputs::names[i];
    const auto grads = tensors_of(run.d_in), grads_again = tensors_of(again.d_in);
    for (size_t i = 0; i < grads.size(); ++i) EXPECT_TRUE(same_bits(gpu, *grads[i], *grads_again[i])) << "d_" << Op::Inputs::names[i];
  }
  EXPECT_EQ(num_damaged_storages(), damaged_before) << "bytes outside an allocation were written";
}

}  // namespace braid::testing
