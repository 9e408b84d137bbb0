#include "models/layers/attention.h"

#include <algorithm>

#include "ops/attention.h"
#include "ops/decode_attention.h"
#include "ops/rotary.h"

namespace braid {
namespace {

constexpr double kQkNormEps = 1e-5;  // not configurable in the checkpoints' format

/// Keeps of a sequence's new rows what later tokens can still see.
void remember(Context& ctx, KvCache& cache, const Tensor& k, const Tensor& v, int64_t begin, int64_t end, int64_t window) {
  if (window > 0) begin = std::max(begin, end - (window - 1));
  if (begin < end) cache.append(ctx, k.slice(0, begin, end), v.slice(0, begin, end), -1);
}

}  // namespace

AttentionMixer::AttentionMixer(const ModelConfig& config, const AttentionConfig& attention, const std::string& name)
    : config_(attention),
      head_dim_(config.hidden_size / attention.num_heads),
      q_proj_(name + ".q_proj", config.hidden_size, config.hidden_size, attention.qkv_bias),
      k_proj_(name + ".k_proj", config.hidden_size, attention.num_kv_heads * head_dim_, attention.qkv_bias),
      v_proj_(name + ".v_proj", config.hidden_size, attention.num_kv_heads * head_dim_, attention.qkv_bias),
      o_proj_(name + ".o_proj", config.hidden_size, config.hidden_size) {
  adopt(q_proj_);
  adopt(k_proj_);
  adopt(v_proj_);
  adopt(o_proj_);
  if (!attention.qk_norm) return;
  adopt(q_norm_.emplace(name + ".q_norm", head_dim_, kQkNormEps));
  adopt(k_norm_.emplace(name + ".k_norm", head_dim_, kQkNormEps));
}

Tensor AttentionMixer::forward(Context& ctx, const MixerInput& in) const {
  const int64_t N = in.x.size(0), H = config_.num_heads, HK = config_.num_kv_heads;
  const auto [to_q, to_k, to_v] = project_each(ctx, in, {q_proj_.map(ctx), k_proj_.map(ctx), v_proj_.map(ctx)});
  Tensor q = to_q.view({N, H, head_dim_}), k = to_k.view({N, HK, head_dim_});
  const Tensor v = to_v.view({N, HK, head_dim_});
  if (q_norm_) {
    q = (*q_norm_)(ctx, q);
    k = (*k_norm_)(ctx, k);
  }
  Rotary::Attrs positions{in.seqs, config_.rope_theta, {}};
  if (in.device_positions) positions.device_offsets = in.device_positions;
  else if (in.positions) positions.offsets = *in.positions;
  q = apply<Rotary>(ctx, {q}, positions).y;
  k = apply<Rotary>(ctx, {k}, positions).y;
  const Tensor o = in.state ? attend_to_cache(ctx, q, k, v, in) : attend(ctx, q, k, v, in);
  return o_proj_(ctx, o.view({N, H * head_dim_}));
}

Tensor AttentionMixer::attend(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v, const MixerInput& in) const {
  return apply<Attention>(ctx, {q, k, v}, {.q_seqs = in.seqs, .window = config_.window_size}).o;
}

Tensor AttentionMixer::attend_to_cache(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v, const MixerInput& in) const {
  const int64_t S = in.seqs.count(), window = config_.window_size;
  std::vector<KvCache>& caches = in.state->kv;
  if constexpr (kWithCuda)
    if (in.device_positions) return decode_attention_cuda(ctx, q, k, v, caches.at(0).ring_k(), caches.at(0).ring_v(), in.device_positions);
  caches.resize(S);
  const bool all_empty = std::all_of(caches.begin(), caches.end(), [](const KvCache& cache) { return cache.length() == 0; });
  if (all_empty) {
    for (int64_t s = 0; s < S; ++s) remember(ctx, caches[s], k, v, in.seqs.begin(s), in.seqs.end(s), window);
    return attend(ctx, q, k, v, in);
  }
  Tensor o;
  for (int64_t s = 0; s < S; ++s) {
    const int64_t begin = in.seqs.begin(s), end = in.seqs.end(s);
    if (begin == end) continue;
    caches[s].append(ctx, k.slice(0, begin, end), v.slice(0, begin, end), window > 0 ? window - 1 : -1);
    const Sequences queries = Sequences::single(end - begin), keys = Sequences::single(caches[s].length());
    Tensor part =
        apply<Attention>(ctx, {q.slice(0, begin, end), caches[s].k(), caches[s].v()}, {.q_seqs = queries, .k_seqs = keys, .window = window}).o;
    if (part.size(0) == q.size(0)) return part;
    if (!o) o = Tensor::empty(ctx, q.shape(), q.dtype());
    copy_into(ctx, o.slice(0, begin, end), part);
  }
  return o ? o : Tensor::empty(ctx, q.shape(), q.dtype());
}

MixerCost AttentionMixer::cost() const {
  return {.kv_elements = 2 * config_.num_kv_heads * head_dim_,
          .attention_flops_per_span = 4.0 * static_cast<double>(config_.num_heads * head_dim_),
          .window = config_.window_size};
}

}  // namespace braid
