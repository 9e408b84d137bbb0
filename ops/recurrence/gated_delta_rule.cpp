#include "ops/recurrence/gated_delta_rule.h"

#include <cmath>

#include "ops/checks.h"
#include "ops/recurrence/gated_delta_rule_forms.h"
#include "ops/rows.h"

namespace braid {
namespace {

constexpr double kNormEps = 1e-6;

template <class T>
delta::Problem<T> make_problem(const GatedDeltaRule::Saved& x, const GatedDeltaRule::Attrs& attrs) {
  const int64_t K = x.q.size(2);
  const auto decay = !x.log_decay ? delta::Decay::none : x.log_decay.rank() == 2 ? delta::Decay::head : delta::Decay::channel;
  return {.H = x.q.size(1),
          .HV = x.v.size(1),
          .K = K,
          .V = x.v.size(2),
          .seqs = attrs.seqs,
          .scale = static_cast<T>(attrs.scale.value_or(1 / std::sqrt(static_cast<double>(K)))),
          .decay = decay,
          .q = x.q.data<T>(),
          .k = x.k.data<T>(),
          .v = x.v.data<T>(),
          .beta = x.beta.data<T>(),
          .log_decay = data_or_null<T>(x.log_decay),
          .initial_state = data_or_null<T>(x.initial_state)};
}

/// Rows of x divided by sqrt(sum of squares + eps).
template <class T>
void normalize_rows(Context& ctx, const Tensor& x, const Tensor& y, const Tensor& rstd) {
  const int64_t K = x.size(-1);
  ctx.parallel_for(num_rows(x), rows_per_range(K), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      rstd.data<T>()[row] = normalize_row<T>(x.data<T>() + row * K, K, static_cast<T>(kNormEps), y.data<T>() + row * K);
  });
}

/// d_x [N, H, K] from the gradients of each value head d_y [N, HV, K]: summed over the group, then through the norm (rstd defined).
template <class T>
void gather_heads(Context& ctx, const T* d_y, int64_t group, const Tensor& y, const Tensor& rstd, const Tensor& d_x) {
  const int64_t K = y.size(-1);
  ctx.parallel_for(num_rows(y), rows_per_range(group * K), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      auto to = array(d_x.data<T>() + row * K, K);
      to = array(d_y + row * group * K, K);
      for (int64_t i = 1; i < group; ++i) to += array(d_y + (row * group + i) * K, K);
      if (rstd) normalize_row_backward<T>(y.data<T>() + row * K, K, rstd.data<T>()[row], to.data());
    }
  });
}

void check_gate(std::string_view argument, const Tensor& gate, std::initializer_list<Dim> dims, DType dtype) {
  const DType wide = accumulator(dtype);
  check_tensor(GatedDeltaRule::name, argument, gate, dims, gate.defined() && gate.dtype() == dtype ? dtype : wide);
}

}  // namespace

GatedDeltaRule::Outputs GatedDeltaRule::allocate(Context& ctx, const Inputs& in, const Attrs& attrs) {
  check_tensor(name, "q", in.q, {{"N"}, {"H"}, {"K"}});
  const int64_t N = in.q.size(0), H = in.q.size(1), K = in.q.size(2);
  const DType dtype = in.q.dtype(), wide = accumulator(dtype);
  BRAID_CHECK(H > 0 && K > 0, name, ": q must have at least one head and one channel, got ", in.q.shape());
  check_tensor(name, "k", in.k, {{"N", N}, {"H", H}, {"K", K}}, dtype);
  check_tensor(name, "v", in.v, {{"N", N}, {"HV"}, {"V"}}, dtype);
  const int64_t HV = in.v.size(1), V = in.v.size(2);
  BRAID_CHECK(HV > 0 && HV % H == 0, name, ": v must have a multiple of H = ", H, " heads, got ", in.v.shape());
  BRAID_CHECK(V > 0, name, ": v must have at least one channel, got ", in.v.shape());
  check_gate("beta", in.beta, {{"N", N}, {"HV", HV}}, dtype);
  if (in.log_decay.defined() && in.log_decay.rank() == 3) check_gate("log_decay", in.log_decay, {{"N", N}, {"HV", HV}, {"K", K}}, dtype);
  else if (in.log_decay.defined()) check_gate("log_decay", in.log_decay, {{"N", N}, {"HV", HV}}, dtype);
  attrs.seqs.require_tokens(name, "q", N);
  const int64_t S = attrs.seqs.count();
  if (in.initial_state.defined()) check_tensor(name, "initial_state", in.initial_state, {{"S", S}, {"HV", HV}, {"K", K}, {"V", V}}, wide);
  return {Tensor::empty(ctx, in.v.shape(), dtype), final_state_for(ctx, attrs, in.initial_state, {S, HV, K, V}, wide)};
}

GatedDeltaRule::Saved GatedDeltaRule::forward_cpu(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out) {
  const DType dtype = in.q.dtype();
  const int64_t N = in.q.size(0), H = in.q.size(1), K = in.q.size(2), HV = in.v.size(1), V = in.v.size(2);
  Saved saved{.q = in.q,
              .k = in.k,
              .v = in.v,
              .beta = in.beta,
              .log_decay = in.log_decay,
              .initial_state = in.initial_state,
              .final_state = out.final_state,
              .q_rstd = {},
              .k_rstd = {},
              .states = {},
              .inverse = {},
              .u = {}};
  dispatch_real(name, dtype, [&]<class T>() {
    if (attrs.qk_l2norm) {
      saved.q = Tensor::empty(ctx, in.q.shape(), dtype), saved.q_rstd = Tensor::empty(ctx, {N, H}, dtype);
      saved.k = Tensor::empty(ctx, in.k.shape(), dtype), saved.k_rstd = Tensor::empty(ctx, {N, H}, dtype);
      normalize_rows<T>(ctx, in.q, saved.q, saved.q_rstd);
      normalize_rows<T>(ctx, in.k, saved.k, saved.k_rstd);
    }
    const delta::Problem<T> problem = make_problem<T>(saved, attrs);
    T* o = out.o.data<T>();
    T* final_state = out.final_state.data<T>();
    if (chosen_form(attrs.form, attrs.seqs.max_length()) == Form::token) {
      if (attrs.seqs.max_length() > 1) saved.states = Tensor::empty(ctx, {N, HV, K, V}, dtype);
      delta::token_forward<T>(ctx, problem, o, final_state, data_or_null<T>(saved.states));
      return;
    }
    const int64_t chunks = delta::num_chunks(attrs.seqs), Kp = delta::padded(K), Vp = delta::padded(V);
    saved.states = Tensor::empty(ctx, {chunks, HV, Kp, Vp}, dtype);
    saved.inverse = Tensor::empty(ctx, {chunks, HV, delta::kChunk, delta::kChunk}, dtype);
    saved.u = Tensor::empty(ctx, {chunks, HV, delta::kChunk, Vp}, dtype);
    delta::chunked_forward<T>(ctx, problem, o, final_state, {saved.states.data<T>(), saved.inverse.data<T>(), saved.u.data<T>()});
  });
  return saved;
}

void GatedDeltaRule::backward_cpu(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in) {
  const DType dtype = saved.q.dtype();
  const int64_t N = saved.q.size(0), K = saved.q.size(2), HV = saved.v.size(1), group = HV / saved.q.size(1);
  const bool direct = group == 1 && !attrs.qk_l2norm;
  const auto per_value_head = [&](const Tensor& d_x) { return direct || !d_x ? d_x : Tensor::empty(ctx, {N, HV, K}, dtype); };
  const Tensor d_q = per_value_head(d_in.q), d_k = per_value_head(d_in.k);
  dispatch_real(name, dtype, [&]<class T>() {
    const delta::Problem<T> problem = make_problem<T>(saved, attrs);
    const delta::Gradients<T> grads{.d_o = data_or_null<T>(d_out.o),
                                    .d_final_state = data_or_null<T>(d_out.final_state),
                                    .d_q = data_or_null<T>(d_q),
                                    .d_k = data_or_null<T>(d_k),
                                    .d_v = data_or_null<T>(d_in.v),
                                    .d_beta = data_or_null<T>(d_in.beta),
                                    .d_log_decay = data_or_null<T>(d_in.log_decay),
                                    .d_initial_state = data_or_null<T>(d_in.initial_state)};
    if (chosen_form(attrs.form, attrs.seqs.max_length()) == Form::token) {
      delta::token_backward<T>(ctx, problem, saved.final_state.data<T>(), data_or_null<T>(saved.states), grads);
    } else {
      delta::chunked_backward<T>(ctx, problem, {saved.states.data<T>(), saved.inverse.data<T>(), saved.u.data<T>()}, grads);
    }
    if (direct) return;
    if (d_in.q) gather_heads<T>(ctx, d_q.data<T>(), group, saved.q, saved.q_rstd, d_in.q);
    if (d_in.k) gather_heads<T>(ctx, d_k.data<T>(), group, saved.k, saved.k_rstd, d_in.k);
  });
}

}  // namespace braid
