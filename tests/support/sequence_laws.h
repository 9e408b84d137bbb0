// The laws of operators over packed sequences: packed = each sequence alone, split = unsplit with the state handed over,
// chunked form = token-by-token form.
#pragma once
#include "ops/recurrence/form.h"
#include "tests/support/laws.h"

namespace braid::testing {

/// Which tokens and which sequence a run is given.
struct Part {
  int64_t begin, end, sequence;
};

template <class Op>
typename Op::Inputs part_of(const typename Op::Inputs& in, const Part& part, const InputKinds& kinds) {
  typename Op::Inputs result = in;
  const auto members = tensors_of(result);
  for (size_t i = 0; i < members.size(); ++i) {
    Tensor& tensor = *members[i];
    const std::string_view name = Op::Inputs::names[i];
    if (!tensor.defined()) continue;
    if (listed(kinds.token, name) && tensor.rank() > 1) tensor = tensor.slice(0, part.begin, part.end);
    if (listed(kinds.state, name)) tensor = tensor.slice(0, part.sequence, part.sequence + 1);
  }
  return result;
}

inline bool is_state_output(std::string_view name) { return name == "final_state"; }

/// What is allowed: rms(error) over the rms of the part, or over `floor` times that of the whole tensor where the part is smaller (in float32 a state
/// that was forgotten is nothing but rounding).
struct PartTolerance {
  std::function<double(bool is_gradient, std::string_view name)> of;
  double floor = 0;
};

/// The error of the rows [begin, end) of `whole`.
inline double error_of_part(Context& ctx, const Tensor& actual, const Tensor& whole, int64_t begin, int64_t end, double floor) {
  const std::vector<double> x = to_vector<double>(ctx, actual), y = to_vector<double>(ctx, whole);
  const int64_t width = whole.numel() / std::max<int64_t>(1, whole.size(0)), first = begin * width;
  if (static_cast<int64_t>(x.size()) != (end - begin) * width) return std::numeric_limits<double>::infinity();
  double error = 0, part = 0, all = 0;
  for (double value : y) all += value * value;
  for (size_t i = 0; i < x.size(); ++i) {
    error += (x[i] - y[first + i]) * (x[i] - y[first + i]);
    part += y[first + i] * y[first + i];
  }
  const auto count = static_cast<double>(x.size());
  return error == 0 ? 0 : std::sqrt(error / count / std::max(part / count, floor * floor * all / static_cast<double>(y.size())));
}

/// One sequence run in parts, one after the other on one tape, the state handed on, with the output gradients of the whole batch.
template <class Op>
struct PartsRun {
  std::vector<typename Op::Inputs> leaves;
  Tape tape;

  /// Runs forward and backward; the outputs must be those of `whole`.
  PartsRun(Context& ctx, const typename Op::Inputs& in, const typename Op::Attrs& attrs, const std::vector<Part>& parts, const OpRun<Op>& whole,
           const InputKinds& kinds, const PartTolerance& tolerance) {
    WithTape recording(ctx, &tape);
    Context host;
    const typename Op::Outputs d_out = output_gradients<Op>(host, whole.out);
    std::vector<Tensor> roots, seeds;
    Tensor carried;
    for (const Part& part : parts) {
      typename Op::Inputs part_in = part_of<Op>(in, part, kinds);
      const auto members = tensors_of(part_in);
      for (size_t i = 0; i < members.size(); ++i) {
        if (carried && listed(kinds.state, Op::Inputs::names[i])) *members[i] = carried;
        else if (members[i]->defined() && is_floating(members[i]->dtype())) *members[i] = tape.leaf(*members[i]);
      }
      typename Op::Attrs part_attrs = attrs;
      part_attrs.seqs = Sequences::single(part.end - part.begin);
      typename Op::Outputs out = apply<Op>(ctx, part_in, part_attrs);
      leaves.push_back(part_in);
      const bool last = &part == &parts.back();
      const auto outs = tensors_of(out), whole_outs = tensors_of(whole.out), d_outs = tensors_of(d_out);
      for (size_t i = 0; i < outs.size(); ++i) {
        if (!outs[i]->grad_ref().tracked()) continue;
        const std::string_view name = Op::Outputs::names[i];
        const bool state = is_state_output(name);
        if (state) carried = *outs[i];
        if (state && !last) continue;
        const int64_t begin = state ? part.sequence : part.begin, end = state ? part.sequence + 1 : part.end;
        EXPECT_LE(error_of_part(ctx, *outs[i], *whole_outs[i], begin, end, tolerance.floor), tolerance.of(false, name))
            << name << " of sequence " << part.sequence;
        roots.push_back(*outs[i]);
        seeds.push_back(copied(ctx, converted(host, contiguous(host, d_outs[i]->slice(0, begin, end)), outs[i]->dtype())));
      }
    }
    tape.backward(ctx, roots, seeds);
  }
};

/// The gradients of a sequence's parts are those of `whole`; those of inputs that all tokens share are added to `shared`.
template <class Op>
void expect_parts_match(Context& ctx, const PartsRun<Op>& run, const std::vector<Part>& parts, const OpRun<Op>& whole, const InputKinds& kinds,
                        std::vector<Tensor>& shared, const PartTolerance& tolerance) {
  for (size_t p = 0; p < parts.size(); ++p) {
    const auto members = tensors_of(run.leaves[p]), whole_grads = tensors_of(whole.d_in);
    for (size_t i = 0; i < members.size(); ++i) {
      const std::string_view name = Op::Inputs::names[i];
      if (!members[i]->defined() || !members[i]->grad_ref().tracked() || (listed(kinds.state, name) && p > 0)) continue;
      const Tensor grad = run.tape.grad(*members[i]);
      const bool token = listed(kinds.token, name) && members[i]->rank() > 1, state = listed(kinds.state, name);
      if (token || state) {
        const int64_t begin = token ? parts[p].begin : parts[p].sequence, end = token ? parts[p].end : parts[p].sequence + 1;
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
void law_parts(Context& ctx, const OpCase<Op>& op_case, const typename Op::Inputs& in, const InputKinds& kinds, int pieces,
               const PartTolerance& tolerance) {
  const OpRun<Op> whole = run_op<Op>(ctx, in, op_case.attrs);
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
    expect_parts_match<Op>(ctx, run, parts, whole, kinds, shared, tolerance);
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
  law_parts<Op>(ctx, op_case, case_inputs(ctx, op_case), kinds, pieces, {[](bool, std::string_view) { return 1e-10; }});
}

/// A part is a block of law 3 (cuda_laws.h): it may be off by four times what a whole tensor may.
template <class Op>
void law_parts_on_cuda(const OpCase<Op>& op_case, const InputKinds& kinds, int pieces, DType dtype) {
  if (cuda::num_devices() == 0) GTEST_SKIP() << "no GPU";
  Context host, gpu = cuda::make_context();
  const typename Op::Inputs in = on_device(gpu, in_dtype<Op>(host, case_inputs(host, op_case), dtype, kinds));
  law_parts<Op>(gpu, op_case, in, kinds, pieces,
                {[&](bool is_gradient, std::string_view name) { return 4 * cuda_tolerance(dtype, is_gradient, name); }, 0.25});
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

/// Besides register_laws: packed = alone; with a state also split = unsplit; with two forms also chunked = token by token. On a GPU too, but for
/// the forms.
template <class Op>
bool register_sequence_laws(const std::string& suite, const std::vector<OpCase<Op>>& cases, const InputKinds& kinds) {
  for (const OpCase<Op>& c : cases) {
    for (const int pieces : {1, 3}) {
      if (pieces > 1 && kinds.state.empty()) continue;
      const std::string law = pieces > 1 ? "_split" : "_packed";
      register_law(suite, c.name + law, [c, kinds, pieces] { law_parts_on_cpu(c, kinds, pieces); });
      if constexpr (kWithCuda && HasCuda<Op>)
        for (const DType dtype : {DType::f32, DType::bf16})
          register_law(suite, c.name + (dtype == DType::f32 ? "_cuda_f32" : "_cuda_bf16") + law,
                       [c, kinds, pieces, dtype] { law_parts_on_cuda(c, kinds, pieces, dtype); });
    }
    if constexpr (requires { c.attrs.form; }) register_law(suite, c.name + "_forms", [c] { law_forms(c); });
  }
  return true;
}

}  // namespace braid::testing
