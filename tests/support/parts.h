// Running a sequence of a packed batch by itself or in parts, the state handed over, and comparing a part with the same rows of the whole.
#pragma once
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

/// Gradients of tokens, put together from all parts (f64, on the host), where they are compared as a whole; empty: part by part.
using Gathered = std::vector<std::vector<double>>;

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

}  // namespace braid::testing
