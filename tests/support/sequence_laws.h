// The laws of operators over packed sequences: packed = each sequence alone, split = unsplit with the state handed over,
// chunked form = token-by-token form.
#pragma once
#include "ops/recurrence/form.h"
#include "tests/support/parts.h"

namespace braid::testing {

inline void gather(Context& ctx, const Tensor& part, const Tensor& whole, int64_t begin, std::vector<double>& to) {
  const std::vector<double> values = to_vector<double>(ctx, part);
  to.resize(whole.numel());
  std::copy(values.begin(), values.end(), to.begin() + begin * whole.numel() / std::max<int64_t>(1, whole.size(0)));
}

/// The gradients of a sequence's parts are those of `whole`, or go to `gathered`; those of inputs that all tokens share are added to `shared`.
template <class Op>
void expect_parts_match(Context& ctx, const PartsRun<Op>& run, const std::vector<Part>& parts, const OpRun<Op>& whole, const InputKinds& kinds,
                        std::vector<Tensor>& shared, Gathered& gathered, const PartTolerance& tolerance) {
  for (size_t p = 0; p < parts.size(); ++p) {
    const auto members = tensors_of(run.leaves[p]), whole_grads = tensors_of(whole.d_in);
    for (size_t i = 0; i < members.size(); ++i) {
      const std::string_view name = Op::Inputs::names[i];
      if (!members[i]->defined() || !members[i]->grad_ref().tracked() || (listed(kinds.state, name) && p > 0)) continue;
      const Tensor grad = run.tape.grad(*members[i]);
      const bool token = listed(kinds.token, name) && members[i]->rank() > 1, state = listed(kinds.state, name);
      if (token || state) {
        const int64_t begin = token ? parts[p].begin : parts[p].sequence, end = token ? parts[p].end : parts[p].sequence + 1;
        if (token && !gathered.empty()) gather(ctx, grad, *whole_grads[i], begin, gathered[i]);
        else
          EXPECT_LE(error_of_part(ctx, grad, *whole_grads[i], begin, end, tolerance.floor), tolerance.of(true, name))
              << "d_" << name << " of sequence " << parts[p].sequence;
      } else if (grad && shared[i]) {
        convert_into(ctx, shared[i], grad, true);
      } else if (grad) {
        shared[i] = copied(ctx, grad);
      }
    }
  }
}

/// Every sequence by itself (pieces = 1) or cut into `pieces` pieces with the state handed over, against the packed run.
template <class Op>
void law_parts(Context& ctx, const OpCase<Op>& op_case, const OpRun<Op>& whole, const typename Op::Inputs& in, const InputKinds& kinds, int pieces,
               Gathered& gathered, const PartTolerance& tolerance) {
  const Sequences& seqs = op_case.attrs.seqs;
  std::vector<Tensor> shared(kNumTensors<typename Op::Inputs>);
  Random random(5);
  for (int64_t s = 0; s < seqs.count(); ++s) {
    std::vector<int64_t> cuts = {seqs.begin(s), seqs.end(s)};
    for (int i = 1; i < pieces; ++i) cuts.push_back(seqs.begin(s) + static_cast<int64_t>(random.below(seqs.length(s) + 1)));
    std::sort(cuts.begin(), cuts.end());
    std::vector<Part> parts;
    for (size_t i = 0; i + 1 < cuts.size(); ++i) parts.push_back({cuts[i], cuts[i + 1], s});
    const PartsRun<Op> run(ctx, in, op_case.attrs, parts, whole, kinds, tolerance);
    expect_parts_match<Op>(ctx, run, parts, whole, kinds, shared, gathered, tolerance);
  }
  const auto grads = tensors_of(whole.d_in);
  for (size_t i = 0; i < shared.size(); ++i) {
    if (!shared[i]) continue;
    EXPECT_LE(relative_error(ctx, shared[i], *grads[i]), tolerance.of(true, Op::Inputs::names[i])) << "d_" << Op::Inputs::names[i];
  }
}

template <class Op>
void law_parts_on_cpu(const OpCase<Op>& op_case, const InputKinds& kinds, int pieces) {
  Context ctx(2);
  const typename Op::Inputs in = case_inputs(ctx, op_case);
  Gathered none;
  law_parts<Op>(ctx, op_case, run_op<Op>(ctx, in, op_case.attrs), in, kinds, pieces, none, {[](bool, std::string_view) { return 1e-10; }});
}

/// As law 3 compares a kernel with the oracle (cuda_laws.h): outputs and states by part, gradients of tokens by blocks of 64, and as both runs may be
/// off by law 3's tolerance, as a whole by twice that.
template <class Op>
void law_parts_on_cuda(const OpCase<Op>& op_case, const InputKinds& kinds, int pieces, DType dtype) {
  if (cuda::num_devices() == 0) GTEST_SKIP() << "no GPU";
  Context host, gpu = cuda::make_context();
  const typename Op::Inputs in = on_device(gpu, in_dtype<Op>(host, case_inputs(host, op_case), dtype, kinds));
  const OpRun<Op> whole = run_op<Op>(gpu, in, op_case.attrs);
  Gathered gathered(kNumTensors<typename Op::Inputs>);
  law_parts<Op>(gpu, op_case, whole, in, kinds, pieces, gathered,
                {[&](bool is_gradient, std::string_view name) { return 4 * cuda_tolerance(dtype, is_gradient, name); }, 0.25});
  const auto grads = tensors_of(whole.d_in);
  for (size_t i = 0; i < gathered.size(); ++i) {
    if (gathered[i].empty()) continue;
    const std::string_view name = Op::Inputs::names[i];
    const double tolerance = cuda_tolerance(dtype, true, name);
    const Tensor together = from_vector(host, gathered[i], grads[i]->shape()),
                 at_once = from_vector(host, to_vector<double>(gpu, *grads[i]), grads[i]->shape());
    EXPECT_LE(relative_error(host, together, at_once), 2 * tolerance) << "d_" << name;
    EXPECT_LE(worst_block_error(host, together, at_once, kind_of_blocks<typename Op::Inputs>(name)), 4 * tolerance) << "a block of d_" << name;
  }
}

/// The chunked form against the definition in float64.
template <class Op>
void law_forms(OpCase<Op> op_case) {
  Context ctx(2);
  const typename Op::Inputs in = case_inputs(ctx, op_case);
  op_case.attrs.form = Form::token;
  const OpRun<Op> token = run_op<Op>(ctx, in, op_case.attrs);
  op_case.attrs.form = Form::chunked;
  const OpRun<Op> chunked = run_op<Op>(ctx, in, op_case.attrs);
  expect_close(ctx, chunked.out, token.out, 1e-10, "");
  expect_close(ctx, chunked.d_in, token.d_in, 1e-10, "d_");
}

/// Besides register_cuda_laws: packed = alone; with a state also split = unsplit.
template <class Op>
bool register_cuda_sequence_laws(const std::string& suite, const std::vector<OpCase<Op>>& cases, const InputKinds& kinds) {
  if constexpr (kWithCuda && HasCuda<Op>)
    for (const OpCase<Op>& c : cases)
      for (const int pieces : {1, 3}) {
        if (pieces > 1 && kinds.state.empty()) continue;
        for (const DType dtype : {DType::f32, DType::bf16})
          register_law(suite, c.name + (dtype == DType::f32 ? "_cuda_f32" : "_cuda_bf16") + (pieces > 1 ? "_split" : "_packed"),
                       [c, kinds, pieces, dtype] { law_parts_on_cuda(c, kinds, pieces, dtype); });
      }
  return true;
}

/// Besides register_laws: packed = alone; with a state also split = unsplit; with two forms also chunked = token by token. On a GPU too, but for
/// the forms.
template <class Op>
bool register_sequence_laws(const std::string& suite, const std::vector<OpCase<Op>>& cases, const InputKinds& kinds) {
  for (const OpCase<Op>& c : cases) {
    for (const int pieces : {1, 3}) {
      if (pieces > 1 && kinds.state.empty()) continue;
      register_law(suite, c.name + (pieces > 1 ? "_split" : "_packed"), [c, kinds, pieces] { law_parts_on_cpu(c, kinds, pieces); });
    }
    register_cuda_sequence_laws<Op>(suite, {c}, kinds);
    if constexpr (requires { c.attrs.form; }) register_law(suite, c.name + "_forms", [c] { law_forms(c); });
  }
  return true;
}

}  // namespace braid::testing
