// The law that sequences of a batch do not touch: what a sequence gets has the same bits whether its neighbours are finite or not.
#pragma once
#include <cstring>
#include <limits>

#include "tests/support/laws.h"

namespace braid::testing {

/// The sequences that the rows of a token tensor belong to.
template <class Attrs>
const Sequences& sequences_of(const Attrs& attrs, std::string_view name) {
  if constexpr (requires { attrs.seqs; }) return attrs.seqs;
  else return name == "k" || name == "v" ? attrs.keys() : attrs.q_seqs;
}

/// 0, 1, 0, 1, … for sequences that have tokens, −1 for others: both neighbours of a sequence are of the other turn.
inline std::vector<int> turns_of(const Sequences& seqs) {
  std::vector<int> turns(seqs.count(), -1);
  int next = 0;
  for (int64_t s = 0; s < seqs.count(); ++s)
    if (seqs.length(s) > 0) turns[s] = next, next = 1 - next;
  return turns;
}

/// Which rows of a tensor are a sequence's: its tokens, or its state.
struct RowsOf {
  const Sequences* seqs;  // null: a row a sequence
  int64_t begin(int64_t s) const { return seqs ? seqs->begin(s) : s; }
  int64_t end(int64_t s) const { return seqs ? seqs->end(s) : s + 1; }
};

/// A copy on the host in which the rows of the sequences of one turn hold NaN and infinities in place of values (f64).
inline Tensor poisoned(Context& host, const Tensor& tensor, const RowsOf& rows, const std::vector<int>& turns, int turn) {
  const Tensor result = copied(host, tensor);
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  constexpr double kValues[] = {std::numeric_limits<double>::quiet_NaN(), kInfinity, -kInfinity};
  const int64_t width = tensor.numel() / std::max<int64_t>(1, tensor.size(0));
  for (size_t s = 0; s < turns.size(); ++s)
    for (int64_t i = rows.begin(s) * width; turns[s] == turn && i < rows.end(s) * width; ++i) result.data<double>()[i] = kValues[i % 3];
  return result;
}

/// Rows of the sequences of other turns than `turn` have the same bits.
inline void expect_same_rows(Context& ctx, const Tensor& a, const Tensor& b, const RowsOf& rows, const std::vector<int>& turns, int turn,
                             const std::string& what) {
  const std::vector<float> x = to_vector<float>(ctx, a), y = to_vector<float>(ctx, b);
  const int64_t width = a.numel() / std::max<int64_t>(1, a.size(0));
  for (size_t s = 0; s < turns.size(); ++s) {
    if (turns[s] == turn || rows.begin(s) == rows.end(s) || width == 0) continue;
    const int64_t begin = rows.begin(s) * width, count = rows.end(s) * width - begin;
    EXPECT_EQ(std::memcmp(&x[begin], &y[begin], count * sizeof(float)), 0) << what << " of sequence " << s;
  }
}

/// f32 and bf16. Gradients of inputs that all tokens share are sums over all of them, and left out.
template <class Op>
void law_neighbours(Context& ctx, const OpCase<Op>& op_case, const InputKinds& kinds, DType dtype) {
  Context host;
  const auto& attrs = op_case.attrs;
  const std::vector<int> turns = turns_of(sequences_of(attrs, "k"));
  const auto run = [&](int turn) {
    typename Op::Inputs in = case_inputs(host, op_case);
    const auto members = tensors_of(in);
    for (size_t i = 0; i < members.size(); ++i) {
      const std::string_view name = Op::Inputs::names[i];
      if (!*members[i]) continue;
      if (listed(kinds.state, name)) *members[i] = poisoned(host, *members[i], {nullptr}, turns, turn);
      else if (listed(kinds.token, name) && members[i]->rank() > 1)
        *members[i] = poisoned(host, *members[i], {&sequences_of(attrs, name)}, turns, turn);
    }
    in = in_dtype<Op>(host, in, dtype, kinds);
    for (Tensor* member : members)
      if (*member) *member = copied(ctx, *member);
    return run_op<Op>(ctx, in, attrs, [&](typename Op::Outputs& d_out) {
      const auto gradients = tensors_of(d_out);
      for (size_t i = 0; i < gradients.size(); ++i) {
        if (!*gradients[i]) continue;
        const std::string_view name = Op::Outputs::names[i];
        *gradients[i] = poisoned(host, *gradients[i], {name == "final_state" ? nullptr : &sequences_of(attrs, name)}, turns, turn);
      }
    });
  };
  const OpRun<Op> finite = run(2);
  for (int turn : {0, 1}) {
    const OpRun<Op> other = run(turn);
    const auto outs = tensors_of(finite.out), other_outs = tensors_of(other.out);
    for (size_t i = 0; i < outs.size(); ++i) {
      const std::string name(Op::Outputs::names[i]);
      if (*outs[i])
        expect_same_rows(ctx, *outs[i], *other_outs[i], {name == "final_state" ? nullptr : &sequences_of(attrs, name)}, turns, turn, name);
    }
    const auto grads = tensors_of(finite.d_in), other_grads = tensors_of(other.d_in);
    for (size_t i = 0; i < grads.size(); ++i) {
      const std::string name(Op::Inputs::names[i]);
      const bool state = listed(kinds.state, name), token = listed(kinds.token, name) && *grads[i] && grads[i]->rank() > 1;
      if (!*grads[i] || (!state && !token)) continue;
      expect_same_rows(ctx, *grads[i], *other_grads[i], {state ? nullptr : &sequences_of(attrs, name)}, turns, turn, "d_" + name);
    }
  }
}

template <class Op>
bool register_neighbour_laws(const std::string& suite, const std::vector<OpCase<Op>>& cases, const InputKinds& kinds) {
  for (const OpCase<Op>& c : cases) {
    const std::vector<int> turns = turns_of(sequences_of(c.attrs, "k"));
    if (std::find(turns.begin(), turns.end(), 1) == turns.end()) continue;  // one sequence has no neighbour
    register_law(suite, c.name + "_neighbours", [c, kinds] {
      Context ctx(2);
      law_neighbours(ctx, c, kinds, DType::f32);
    });
    if constexpr (kWithCuda && HasCuda<Op>) {
      for (DType dtype : {DType::f32, DType::bf16})
        register_law(suite, c.name + (dtype == DType::f32 ? "_cuda_f32" : "_cuda_bf16") + "_neighbours", [c, kinds, dtype] {
          if (cuda::num_devices() == 0) GTEST_SKIP() << "no GPU";
          Context gpu = cuda::make_context();
          law_neighbours(gpu, c, kinds, dtype);
        });
    }
  }
  return true;
}

}  // namespace braid::testing
