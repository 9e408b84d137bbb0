// The chunked form on a GPU: which problems it takes, what it keeps for backward, the order of its kernels.
//
// In Saved, `beta` holds the factors of the chunks (beta is one of them), `inverse` A, its rest, P and its rest of each chunk, `v` the digits of U's
// rest, `final_state` in which chunks keys repeat; with a decay per channel `log_decay` is what was given and `initial_state` holds the decayed rows
// of q and k.
#include <cmath>

#include "cuda/kernels/gated_delta_rule/chunks.h"
#include "cuda/kernels/gated_delta_rule/tiles.h"
#include "cuda/kernels/operands.h"
#include "cuda/runtime/runtime.h"

namespace braid::delta_cuda {
namespace {

constexpr int64_t kMaxSharedBytes = 227 * 1024;  // of the largest of these kernels: Hopper's limit

Tensor in_float(Context& ctx, const Tensor& x) { return !x.defined() || x.dtype() == DType::f32 ? x : converted(ctx, x, DType::f32); }

bf16* address_of_bf16(const Tensor& x) { return reinterpret_cast<bf16*>(cuda::address(x)); }

/// q, k, their norms and what is kept of the chunks.
Problem make_problem(Context& ctx, const GatedDeltaRule::Saved& x, const GatedDeltaRule::Attrs& attrs) {
  Problem p = {};
  p.S = attrs.seqs.count(), p.N = x.q.size(0), p.H = x.q.size(1), p.K = x.q.size(2), p.HV = x.u.size(1), p.V = x.u.size(2);
  p.slots = p.N / kChunk + p.S;
  p.q = address_of_bf16(x.q), p.k = address_of_bf16(x.k);
  p.q_norm = cuda::address_of<float>(x.q_rstd), p.k_norm = cuda::address_of<float>(x.k_rstd);
  p.cu = attrs.seqs.on_device(ctx).data<int64_t>();
  p.scale = static_cast<float>(attrs.scale.value_or(1 / std::sqrt(static_cast<double>(p.K))));
  if (x.log_decay) p.channel_decay = x.log_decay.raw(), p.channel_decay_is_float = x.log_decay.dtype() == DType::f32;
  p.decayed = address_of_bf16(x.initial_state);
  p.factors = x.beta.data<float>(), p.triangles = address_of_bf16(x.inverse);
  p.states = address_of_bf16(x.states), p.u = address_of_bf16(x.u), p.u_rest = x.v.data<uint8_t>();
  p.repeats = x.final_state.data<int>();
  return p;
}

}  // namespace

bool takes(Context& ctx, const GatedDeltaRule::Inputs& in, const GatedDeltaRule::Attrs& attrs) {
  const int64_t K = in.q.size(2), V = in.v.size(2);
  if (in.q.dtype() != DType::bf16) return false;
  if ((K != 64 && K != 128 && K != 256) || V % kChunk != 0 || in.v.size(1) > 65535) return false;
  if (chosen_form(attrs.form, attrs.seqs.max_length()) == Form::token) return false;
  return cuda::facts(ctx.device().index).shared_bytes_per_block >= kMaxSharedBytes;
}

GatedDeltaRule::Saved forward(Context& ctx, const GatedDeltaRule::Inputs& in, const GatedDeltaRule::Attrs& attrs, GatedDeltaRule::Outputs& out) {
  const int64_t N = in.q.size(0), H = in.q.size(1), K = in.q.size(2), HV = in.v.size(1), V = in.v.size(2);
  const int64_t slots = N / kChunk + attrs.seqs.count();
  const bool by_channel = in.log_decay && in.log_decay.rank() == 3;
  const Tensor beta = in_float(ctx, in.beta), log_decay = by_channel ? Tensor{} : in_float(ctx, in.log_decay);
  GatedDeltaRule::Saved saved;
  saved.q = in.q, saved.k = in.k;
  if (attrs.qk_l2norm) {
    const auto normalize = [&](const Tensor& x, Tensor& y, Tensor& norm) {
      y = Tensor::empty(ctx, x.shape(), DType::bf16), norm = Tensor::empty(ctx, {N, H, 2}, DType::f32);
      NormParams params = {};
      params.x = address_of_bf16(x), params.y = address_of_bf16(y), params.norm = norm.data<float>(), params.rows = N * H, params.K = K;
      launch_norms(ctx, params);
    };
    normalize(in.q, saved.q, saved.q_rstd);
    normalize(in.k, saved.k, saved.k_rstd);
  }
  if (by_channel) {
    saved.log_decay = in.log_decay;
    saved.initial_state = Tensor::empty(ctx, {kNumDecayed, N, HV, K}, DType::bf16);
  }
  saved.beta = Tensor::empty(ctx, {slots, HV, kNumFactors, kChunk}, DType::f32);
  saved.inverse = Tensor::empty(ctx, {slots, HV, 4, kTriangle}, DType::bf16);
  saved.states = Tensor::empty(ctx, {slots, HV, V, K}, DType::bf16);
  saved.u = Tensor::empty(ctx, {N, HV, V}, DType::bf16);
  saved.v = Tensor::empty(ctx, {N, HV, V}, DType::u8);
  saved.final_state = Tensor::empty(ctx, {slots, HV}, DType::i32);
  Problem p = make_problem(ctx, saved, attrs);
  p.v = address_of_bf16(in.v), p.beta = beta.data<float>(), p.log_decay = cuda::address_of<float>(log_decay);
  if (by_channel) launch_channel_chunks(ctx, p);
  else launch_chunks(ctx, p);
  launch_forward(ctx, {p, cuda::address_of<float>(in.initial_state), out.final_state.data<float>(), address_of_bf16(out.o)});
  return saved;
}

void backward(Context& ctx, const GatedDeltaRule::Saved& saved, const GatedDeltaRule::Attrs& attrs, const GatedDeltaRule::Outputs& d_out,
              GatedDeltaRule::Inputs& d_in) {
  GradientParams params = {};
  params.backward.problem = make_problem(ctx, saved, attrs);
  const Problem& p = params.backward.problem;
  const Tensor d_r = Tensor::empty(ctx, saved.u.shape(), DType::bf16), d_states = Tensor::empty(ctx, saved.states.shape(), DType::bf16);
  params.backward.d_o = address_of_bf16(d_out.o), params.backward.d_final = cuda::address_of<float>(d_out.final_state);
  params.backward.d_initial = cuda::address_of<float>(d_in.initial_state), params.backward.d_v = address_of_bf16(d_in.v);
  params.backward.d_r = address_of_bf16(d_r), params.backward.d_states = address_of_bf16(d_states);
  const Tensor d_r_rest = Tensor::empty(ctx, saved.v.shape(), DType::u8);
  params.backward.d_r_rest = d_r_rest.data<uint8_t>();
  launch_backward(ctx, params.backward);

  const bool direct = p.HV == p.H && !p.q_norm;
  const auto scratch = [&](const Tensor& x, const Shape& shape, DType dtype, bool is_target) {
    return !x || is_target ? x : Tensor::empty(ctx, shape, dtype);
  };
  const Tensor d_q = scratch(d_in.q, {p.N, p.HV, p.K}, DType::bf16, direct), d_k = scratch(d_in.k, {p.N, p.HV, p.K}, DType::bf16, direct);
  const auto in_float_too = [&](const Tensor& x) { return scratch(x, {p.N, p.HV}, DType::f32, x && x.dtype() == DType::f32); };
  const Tensor d_beta = in_float_too(d_in.beta), d_log_decay = p.channel_decay ? Tensor{} : in_float_too(d_in.log_decay);
  params.d_q = address_of_bf16(d_q), params.d_k = address_of_bf16(d_k);
  params.d_beta = cuda::address_of<float>(d_beta), params.d_log_decay = cuda::address_of<float>(d_log_decay);
  if (p.channel_decay) {
    params.d_channel_decay = cuda::address(d_in.log_decay);
    params.d_channel_decay_is_float = d_in.log_decay && d_in.log_decay.dtype() == DType::f32;
    launch_channel_gradients(ctx, params);
  } else {
    launch_gradients(ctx, params);
  }

  const auto gather = [&](const Tensor& d_y, const Tensor& y, const float* norm, const Tensor& d_x) {
    if (!d_x || direct) return;
    launch_gather(ctx,
                  {nullptr, address_of_bf16(y), const_cast<float*>(norm), address_of_bf16(d_y), address_of_bf16(d_x), p.N * p.H, p.K, p.HV / p.H});
  };
  gather(d_q, saved.q, p.q_norm, d_in.q);
  gather(d_k, saved.k, p.k_norm, d_in.k);
  if (d_in.beta && d_in.beta.dtype() != DType::f32) convert_into(ctx, d_in.beta, d_beta, false);
  if (d_log_decay && d_in.log_decay.dtype() != DType::f32) convert_into(ctx, d_in.log_decay, d_log_decay, false);
}

}  // namespace braid::delta_cuda
