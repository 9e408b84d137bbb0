#include "ops/recurrence/gated_linear_attention.h"

#include <cmath>

#include "ops/checks.h"
#include "ops/recurrence/gated_linear_attention_forms.h"
#include "ops/rows.h"

namespace braid {
namespace {

using gla::Decay;

Decay decay_kind(const Tensor& log_decay) {
  if (!log_decay) return Decay::absent;
  return log_decay.rank() == 1 ? Decay::constant : log_decay.rank() == 2 ? Decay::head : Decay::channel;
}

gla::Sizes sizes_of(const Tensor& q, const Tensor& v, const Tensor& log_decay, const GatedLinearAttention::Attrs& attrs) {
  const int64_t K = q.size(2);
  return {q.size(1), K, v.size(2), attrs.scale.value_or(1 / std::sqrt(static_cast<double>(std::max<int64_t>(1, K)))), decay_kind(log_decay)};
}

/// Where each sequence's kept states begin; the last element is their number.
std::vector<int64_t> first_states(const Sequences& seqs) {
  std::vector<int64_t> first = {0};
  for (int64_t s = 0; s < seqs.count(); ++s) first.push_back(first.back() + (seqs.length(s) + gla::kKeptEvery - 1) / gla::kKeptEvery);
  return first;
}

/// Heads of sequences that one thread takes at a time: enough work to be worth it.
int64_t grain_of(const gla::Sizes& sizes, const Sequences& seqs) {
  return rows_per_range(seqs.num_tokens() / std::max<int64_t>(1, seqs.count()) * sizes.K * sizes.V);
}

}  // namespace

GatedLinearAttention::Outputs GatedLinearAttention::allocate(Context& ctx, const Inputs& in, const Attrs& attrs) {
  check_tensor(name, "q", in.q, {{"N"}, {"H"}, {"K"}});
  const int64_t N = in.q.size(0), H = in.q.size(1), K = in.q.size(2), S = attrs.seqs.count();
  const DType dtype = in.q.dtype(), acc = accumulator(dtype);
  check_tensor(name, "k", in.k, {{"N", N}, {"H", H}, {"K", K}}, dtype);
  check_tensor(name, "v", in.v, {{"N", N}, {"H", H}, {"V"}}, dtype);
  const int64_t V = in.v.size(2);
  if (in.log_decay) {
    const DType wanted = in.log_decay.dtype() == acc ? acc : dtype;
    switch (in.log_decay.rank()) {
      case 1:
        check_tensor(name, "log_decay", in.log_decay, {{"H", H}}, wanted);
        break;
      case 2:
        check_tensor(name, "log_decay", in.log_decay, {{"N", N}, {"H", H}}, wanted);
        break;
      default:
        check_tensor(name, "log_decay", in.log_decay, {{"N", N}, {"H", H}, {"K", K}}, wanted);
    }
  }
  if (in.initial_state) check_tensor(name, "initial_state", in.initial_state, {{"S", S}, {"H", H}, {"K", K}, {"V", V}}, acc);
  attrs.seqs.require_tokens(name, "q", N);
  BRAID_CHECK(std::isfinite(attrs.scale.value_or(1)), name, ": scale must be finite, got ", *attrs.scale);
  return {Tensor::empty(ctx, {N, H, V}, dtype), final_state_for(ctx, attrs, in.initial_state, {S, H, K, V}, acc)};
}

GatedLinearAttention::Saved GatedLinearAttention::forward_cpu(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out) {
  const gla::Sizes sizes = sizes_of(in.q, in.v, in.log_decay, attrs);
  const Sequences& seqs = attrs.seqs;
  const bool chunked = chosen_form(attrs.form, seqs.max_length()) == Form::chunked;
  const std::vector<int64_t> first_state = first_states(seqs);
  Saved saved{in.q, in.k, in.v, in.log_decay, in.initial_state, {}, {}, {}, {}};
  const int64_t num_states = chunked ? first_state.back() : seqs.num_tokens();
  if (ctx.tape) saved.states = Tensor::empty(ctx, {num_states, sizes.H, sizes.K, sizes.V}, accumulator(in.q.dtype()));
  dispatch_real(name, in.q.dtype(), [&]<class T>() {
    const gla::Forward<T> op{sizes,
                             in.q.data<T>(),
                             in.k.data<T>(),
                             in.v.data<T>(),
                             data_or_null<T>(in.log_decay),
                             data_or_null<T>(in.initial_state),
                             out.o.data<T>(),
                             out.final_state.data<T>(),
                             data_or_null<T>(saved.states)};
    ctx.parallel_for(seqs.count() * sizes.H, grain_of(sizes, seqs), [&](int64_t begin, int64_t end) {
      if (chunked) gla::forward_chunked(op, seqs, first_state, begin, end);
      else gla::forward_token(op, seqs, begin, end);
    });
  });
  return saved;
}

void GatedLinearAttention::backward_cpu(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in) {
  const gla::Sizes sizes = sizes_of(saved.q, saved.v, saved.log_decay, attrs);
  const Sequences& seqs = attrs.seqs;
  const bool chunked = chosen_form(attrs.form, seqs.max_length()) == Form::chunked;
  const std::vector<int64_t> first_state = first_states(seqs);
  const Tensor d_o = d_out.o ? d_out.o : Tensor::zeros(ctx, saved.v.shape(), saved.v.dtype());
  const bool constant = sizes.decay == Decay::constant && d_in.log_decay;
  std::vector<double> constant_sums(constant ? seqs.count() * sizes.H : 0);
  dispatch_real(name, saved.q.dtype(), [&]<class T>() {
    const gla::Backward<T> op{sizes,
                              saved.q.data<T>(),
                              saved.k.data<T>(),
                              saved.v.data<T>(),
                              data_or_null<T>(saved.log_decay),
                              data_or_null<T>(saved.initial_state),
                              saved.states.data<T>(),
                              d_o.data<T>(),
                              data_or_null<T>(d_out.final_state),
                              data_or_null<T>(d_in.q),
                              data_or_null<T>(d_in.k),
                              data_or_null<T>(d_in.v),
                              data_or_null<T>(d_in.initial_state),
                              constant ? nullptr : data_or_null<T>(d_in.log_decay),
                              constant ? constant_sums.data() : nullptr};
    ctx.parallel_for(seqs.count() * sizes.H, grain_of(sizes, seqs), [&](int64_t begin, int64_t end) {
      if (chunked) gla::backward_chunked(op, seqs, first_state, begin, end);
      else gla::backward_token(op, seqs, begin, end);
    });
    for (int64_t h = 0; constant && h < sizes.H; ++h) {
      double sum = 0;
      for (int64_t s = 0; s < seqs.count(); ++s) sum += constant_sums[s * sizes.H + h];
      d_in.log_decay.data<T>()[h] = static_cast<T>(sum);
    }
  });
}

}  // namespace braid
