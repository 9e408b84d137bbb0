// The laws every operator must keep, checked from one list of cases (design: quality).
//
// A test file makes a list of OpCase and calls register_laws (and register_sequence_laws for operators over packed sequences);
// each case × law becomes a test of its own. Inputs are made in f64 on the CPU; other dtypes are rounded from them.
#pragma once
#include <gtest/gtest.h>

#include "autograd/gradcheck.h"
#include "tests/support/cuda_laws.h"

namespace braid::testing {

template <class Record>
void expect_close(Context& ctx, const Record& actual, const Record& expected, double tolerance, const std::string& what) {
  const auto a = tensors_of(actual), b = tensors_of(expected);
  for (size_t i = 0; i < a.size(); ++i) {
    ASSERT_EQ(a[i]->defined(), b[i]->defined()) << what << Record::names[i];
    if (!a[i]->defined()) continue;
    EXPECT_LE(relative_error(ctx, *a[i], *b[i]), tolerance) << what << Record::names[i];
  }
}

template <class Record>
void expect_same_bits(Context& ctx, const Record& actual, const Record& expected, const std::string& what) {
  const auto a = tensors_of(actual), b = tensors_of(expected);
  for (size_t i = 0; i < a.size(); ++i) EXPECT_TRUE(same_bits(ctx, *a[i], *b[i])) << what << Record::names[i];
}

template <class Op>
void expect_same_runs(Context& ctx, const OpRun<Op>& a, const OpRun<Op>& b) {
  expect_same_bits(ctx, a.out, b.out, "");
  expect_same_bits(ctx, a.d_in, b.d_in, "d_");
}

/// f32 (and bf16-rounded bf16) against the f64 oracle on the same values.
template <class Op>
void law_precision(const OpCase<Op>& op_case, const InputKinds& kinds, DType dtype, double tolerance) {
  Context ctx(2);
  const typename Op::Inputs rounded = in_dtype<Op>(ctx, case_inputs(ctx, op_case), dtype, kinds);
  const OpRun<Op> oracle = run_op<Op>(ctx, in_dtype<Op>(ctx, rounded, DType::f64, kinds), op_case.attrs);
  const OpRun<Op> run = run_op<Op>(ctx, rounded, op_case.attrs);
  expect_close(ctx, run.out, oracle.out, tolerance, "");
  expect_close(ctx, run.d_in, oracle.d_in, tolerance, "d_");
}

template <class Op>
void law_gradcheck(const OpCase<Op>& op_case) {
  Context ctx(2);
  const GradcheckResult result = gradcheck<Op>(ctx, case_inputs(ctx, op_case), op_case.attrs);
  EXPECT_TRUE(result.passed) << result.message;
}

/// Poisoned allocations: everything is written, nothing outside is, and the bits do not depend on what memory held before.
template <class Op>
void law_poison(const OpCase<Op>& op_case) {
  const int64_t damaged_before = num_damaged_storages();
  {
    Context plain(2), guarded(2);
    guarded.guarded_allocations = true;
    const OpRun<Op> expected = run_op<Op>(plain, case_inputs(plain, op_case), op_case.attrs);
    const OpRun<Op> actual = run_op<Op>(guarded, case_inputs(guarded, op_case), op_case.attrs);
    expect_same_runs(plain, actual, expected);
    for (const Tensor* tensor : tensors_of(actual.out)) EXPECT_TRUE(!tensor->defined() || all_finite(plain, *tensor));
    for (const Tensor* tensor : tensors_of(actual.d_in)) EXPECT_TRUE(!tensor->defined() || all_finite(plain, *tensor));
  }
  EXPECT_EQ(num_damaged_storages(), damaged_before) << "bytes outside an allocation were written";
}

template <class Op>
void law_determinism(const OpCase<Op>& op_case, const InputKinds& kinds) {
  Context one(1), two(2), five(5);
  const typename Op::Inputs in = in_dtype<Op>(one, case_inputs(one, op_case), DType::f32, kinds);
  const OpRun<Op> first = run_op<Op>(one, in, op_case.attrs);
  expect_same_runs(one, run_op<Op>(two, in, op_case.attrs), first);
  expect_same_runs(one, run_op<Op>(five, in, op_case.attrs), first);
}

/// The operator with its i-th input replaced is an Error of one line that names both.
template <class Op>
void expect_refused(Context& ctx, const OpCase<Op>& op_case, size_t i, const std::string& what,
                    const std::function<Tensor(const Tensor&)>& replaced) {
  typename Op::Inputs in = case_inputs(ctx, op_case);
  Tensor& input = *tensors_of(in)[i];
  if (!input.defined()) return;
  input = replaced(input);
  const std::string name(Op::Inputs::names[i]);
  try {
    apply<Op>(ctx, in, op_case.attrs);
    ADD_FAILURE() << name << " was accepted with " << what;
  } catch (const Error& error) {
    const std::string message = error.what();
    EXPECT_TRUE(message.starts_with(std::string(Op::name) + ": ")) << message;
    EXPECT_NE(message.find(name), std::string::npos) << "expected " << name << " to be named: " << message;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
  }
}

/// Every input in turn of another kind of numbers, without dimensions, and on another device.
template <class Op>
void law_refusal(const OpCase<Op>& op_case) {
  Context ctx(1);
  for (size_t i = 0; i < kNumTensors<typename Op::Inputs>; ++i) {
    expect_refused<Op>(ctx, op_case, i, "another dtype", [&](const Tensor& input) {
      return is_floating(input.dtype()) ? converted(ctx, input, DType::i64) : Tensor::zeros(ctx, input.shape(), DType::f64);
    });
    if (!op_case.any_shape)
      expect_refused<Op>(ctx, op_case, i, "no dimension", [&](const Tensor& input) { return Tensor::zeros(ctx, {}, input.dtype()); });
    expect_refused<Op>(ctx, op_case, i, "memory of a GPU", [&](const Tensor& input) {
      const Tensor here = contiguous(ctx, input);
      return Tensor::over(Storage::wrap(here.raw(), here.nbytes(), {DeviceKind::cuda, 0}, here.storage()), 0, here.shape(), here.dtype());
    });
  }
}

class LawTest : public ::testing::Test {
 public:
  explicit LawTest(std::function<void()> body) : body_(std::move(body)) {}
  void TestBody() override { body_(); }

 private:
  std::function<void()> body_;
};

inline void register_law(const std::string& suite, const std::string& name, std::function<void()> body) {
  ::testing::RegisterTest(suite.c_str(), name.c_str(), nullptr, nullptr, __FILE__, __LINE__,
                          [body = std::move(body)]() -> ::testing::Test* { return new LawTest(body); });
}

/// The laws of an operator's kernels only: for shapes at which every law would take the CPU too long.
template <class Op>
bool register_cuda_laws(const std::string& suite, const std::vector<OpCase<Op>>& cases, const InputKinds& kinds = {}) {
  if constexpr (kWithCuda && HasCuda<Op>)
    for (const OpCase<Op>& c : cases) {
      register_law(suite, c.name + "_cuda_f32", [c, kinds] { law_cuda(c, kinds, DType::f32); });
      register_law(suite, c.name + "_cuda_bf16", [c, kinds] { law_cuda(c, kinds, DType::bf16); });
    }
  return true;
}

/// Registers every law for every case. Call it from a namespace-scope initialiser: const bool kLaws = register_laws<Op>(…).
template <class Op>
bool register_laws(const std::string& suite, const std::vector<OpCase<Op>>& cases, const InputKinds& kinds = {}) {
  for (const OpCase<Op>& c : cases) {
    if (c.gradcheck) register_law(suite, c.name + "_gradcheck", [c] { law_gradcheck(c); });
    register_law(suite, c.name + "_f32", [c, kinds] { law_precision(c, kinds, DType::f32, c.f32_tolerance); });
    register_law(suite, c.name + "_bf16", [c, kinds] { law_precision(c, kinds, DType::bf16, 1e-2); });
    register_law(suite, c.name + "_poison", [c] { law_poison(c); });
    register_law(suite, c.name + "_determinism", [c, kinds] { law_determinism(c, kinds); });
    register_law(suite, c.name + "_refusal", [c] { law_refusal(c); });
    register_cuda_laws<Op>(suite, {c}, kinds);
  }
  return true;
}

}  // namespace braid::testing
