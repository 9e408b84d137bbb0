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

/// Runs the parts of one sequence one after the other on one tape, handing the state on, with the output gradients of the whole
/// batch; compares outputs and gradients with those of `whole`. Gradients of inputs shared by all tokens are added to `shared`.
template <class Op>
void expect_parts_match(Context& ctx, const typename Op::Inputs& in, const typename Op::Attrs& attrs, const std::vector<Part>& parts,
                        const OpRun<Op>& whole, const InputKinds& kinds, std::vector<Tensor>& shared, double tolerance) {
  Tape tape;
  WithTape recording(ctx, &tape);
  const typename Op::Outputs d_out = output_gradients<Op>(ctx, whole.out);
  std::vector<typename Op::Inputs> leaves;
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
      const bool state = is_state_output(Op::Outputs::names[i]);
      if (state) carried = *outs[i];
      if (state && !last) continue;
      const int64_t begin = state ? part.sequence : part.begin, end = state ? part.sequence + 1 : part.end;
      EXPECT_LE(relative_error(ctx, *outs[i], whole_outs[i]->slice(0, begin, end)), tolerance) << Op::Outputs::names[i];
      roots.push_back(*outs[i]);
      seeds.push_back(contiguous(ctx, d_outs[i]->slice(0, begin, end)));
    }
  }
  tape.backward(ctx, roots, seeds);
  for (size_t p = 0; p < parts.size(); ++p) {
    const auto members = tensors_of(leaves[p]), whole_grads = tensors_of(whole.d_in);
    for (size_t i = 0; i < members.size(); ++i) {
      const std::string_view name = Op::Inputs::names[i];
      if (!members[i]->defined() || !members[i]->grad_ref().tracked() || (listed(kinds.state, name) && p > 0)) continue;
      const Tensor grad = tape.grad(*members[i]);
      const bool token = listed(kinds.token, name) && members[i]->rank() > 1, state = listed(kinds.state, name);
      const Tensor expected = token   ? whole_grads[i]->slice(0, parts[p].begin, parts[p].end)
                              : state ? whole_grads[i]->slice(0, parts[p].sequence, parts[p].sequence + 1)
                                      : Tensor{};
      if (expected) {
        EXPECT_LE(relative_error(ctx, grad, expected), tolerance) << "d_" << name;
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
void law_parts(const OpCase<Op>& op_case, const InputKinds& kinds, int pieces) {
  Context ctx(2);
  const typename Op::Inputs in = case_inputs(ctx, op_case);
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
    expect_parts_match<Op>(ctx, in, op_case.attrs, parts, whole, kinds, shared, 1e-10);
  }
  const auto grads = tensors_of(whole.d_in);
  for (size_t i = 0; i < shared.size(); ++i) {
    if (!shared[i]) continue;
    EXPECT_LE(relative_error(ctx, shared[i], *grads[i]), 1e-10) << "d_" << Op::Inputs::names[i];
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

/// Besides register_laws: packed = alone; with a state also split = unsplit; with two forms also chunked = token by token.
template <class Op>
bool register_sequence_laws(const std::string& suite, const std::vector<OpCase<Op>>& cases, const InputKinds& kinds) {
  for (const OpCase<Op>& c : cases) {
    register_law(suite, c.name + "_packed", [c, kinds] { law_parts(c, kinds, 1); });
    if (!kinds.state.empty()) register_law(suite, c.name + "_split", [c, kinds] { law_parts(c, kinds, 3); });
    if constexpr (requires { c.attrs.form; }) register_law(suite, c.name + "_forms", [c] { law_forms(c); });
  }
  return true;
}

}  // namespace braid::testing
