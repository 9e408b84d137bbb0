// The tensor-core path: which problems take it, how their tokens are cut, and the order of its kernels (README.md has the schedule).
#include "cuda/kernels/gated_linear_attention/cut.h"
#include "cuda/kernels/norms/column_sums.h"
#include "cuda/kernels/operands.h"
#include "cuda/runtime/runtime.h"

namespace braid::gla_cuda {
namespace {

using device::bf16;

constexpr int64_t kMinTokens = 17;    // shorter sequences (decoding) are faster token by token
constexpr int64_t kMinSegment = 256;  // of four chunks: below, the states' bytes outweigh the tokens'

constexpr bool is_built(int64_t size) { return size == 64 || size == 128 || size == 256 || size == 512; }

/// Tokens of a segment with which one kind of walk just fills the multiprocessors: C and M as in WalkParams.
int64_t filling_length(int64_t N, int64_t H, int64_t M, int64_t C, int num_multiprocessors) {
  const int64_t blocks_a_segment = H * std::max<int64_t>(1, M / walk_tile(M, C));
  return N * blocks_a_segment / (walk_blocks_a_multiprocessor(C) * num_multiprocessors);
}

/// One segment a sequence where none is much longer than what fills the multiprocessors; else segments of that length, which end together,
/// or where sequences do not divide into such, of half of it, so that long ones among short ones do not end last alone.
int64_t segment_length(const Problem& p, const Sequences& seqs, int num_multiprocessors) {
  const int64_t N = seqs.num_tokens();
  const int64_t filling = std::max(filling_length(N, p.H, p.V, p.K, num_multiprocessors), filling_length(N, p.H, p.K, p.V, num_multiprocessors));
  const int64_t length = std::max(kMinSegment, (filling + kMinSegment - 1) / kMinSegment * kMinSegment);
  if (seqs.max_length() <= length + length / 2) return (N / kChunk + 1) * kChunk;
  int64_t filled = 0;
  for (int64_t s = 0; s < seqs.count(); ++s) filled += (seqs.length(s) + length - 1) / length * length;
  return filled <= N + N / 8 ? length : std::max(kMinSegment, length / 2);
}

FastProblem fast_problem(Context& ctx, const Problem& p, const Sequences& seqs) {
  const int64_t N = seqs.num_tokens(), length = segment_length(p, seqs, cuda::facts(ctx.device().index).num_multiprocessors);
  const auto cut = [&](int64_t pieces) { return Cut{p.cu_seqlens, p.S, pieces, N / pieces + p.S}; };
  return {p, cut(kChunk), cut(length), N, length <= seqs.max_length()};
}

Tensor key_rows(Context& ctx, const FastProblem& f) { return Tensor::empty(ctx, {f.num_tokens, f.problem.H, f.problem.K}, DType::bf16); }
bf16* rows_of(const Tensor& tensor) { return static_cast<bf16*>(cuda::address(tensor)); }

Prepared prepared(Context& ctx, const FastProblem& f) {
  const Problem& p = f.problem;
  const int64_t slots = f.chunks.slots;
  Prepared result;
  result.pairs = Tensor::empty(ctx, {slots, p.H, kChunk, kChunk}, DType::bf16);
  result.decay = Tensor::empty(ctx, {slots, p.H, p.K}, DType::f32);
  if (p.decay_key) {
    result.q = key_rows(ctx, f), result.k = key_rows(ctx, f);
  } else {
    result.factors = Tensor::empty(ctx, {slots, p.H, 4, kChunk}, DType::f32);
  }
  const PrepareParams params{
      p, f.chunks, rows_of(result.q), rows_of(result.k), rows_of(result.pairs), result.decay.data<float>(), cuda::address_of<float>(result.factors)};
  if (p.decay_key) launch_prepare_channel(ctx, params);
  else launch_prepare_head(ctx, params);
  return result;
}

/// q or k as the walks take them: decayed, or the input, which they decay by token.
const void* walked(const Tensor& prepared, const void* input) { return prepared ? prepared.raw() : input; }

/// The operands of a walk: what the state is multiplied with, and the two factors of its update.
WalkParams walk_params(const FastProblem& f, const Prepared& prepared, const void* across, const void* columns, const void* rows, bool reverse) {
  WalkParams params = {};
  params.problem = f.problem;
  params.segments = f.segments;
  params.across = static_cast<const bf16*>(across);
  params.columns = static_cast<const bf16*>(columns);
  params.rows = static_cast<const bf16*>(rows);
  params.pairs = rows_of(prepared.pairs);
  params.decay = prepared.decay.data<float>();
  params.factors = cuda::address_of<float>(prepared.factors);
  params.num_chunk_slots = f.chunks.slots;
  params.reverse = reverse;
  return params;
}

/// The states before each segment in walking order: `initial` itself when there is one segment a sequence.
Tensor segment_states(Context& ctx, const FastProblem& f, WalkParams walk, const Tensor& initial) {
  if (!f.joined) return initial;
  const Problem& p = f.problem;
  const Tensor states = Tensor::empty(ctx, {f.segments.slots, p.H, p.K, p.V}, DType::f32);
  const Tensor decay = Tensor::empty(ctx, {f.segments.slots, p.H, p.K}, DType::f32);
  walk.last = states.data<float>();
  walk.segment_decay = decay.data<float>();
  launch_walk_local(ctx, walk);
  launch_join(ctx, f, walk.last, walk.segment_decay, cuda::address_of<float>(initial), walk.reverse);
  return states;
}

/// What the walks over keys leave for `finish`: S d_o and G v of every token, and what of d_log_decay spans each chunk.
struct KeyWalks {
  Tensor across_q, across_k, spanning;
};

KeyWalks walk_keys(Context& ctx, const FastProblem& f, const Prepared& prepared, const void* d_o, const Tensor& states, const Tensor& gradients,
                   bool with_decay) {
  const Problem& p = f.problem;
  const int64_t parts = num_column_parts(p.V);
  KeyWalks result{key_rows(ctx, f), key_rows(ctx, f), {}};
  Tensor kept;
  if (with_decay) {
    kept = Tensor::empty(ctx, {num_kept(f) * 4}, DType::f32);
    result.spanning = Tensor::empty(ctx, {parts, f.chunks.slots, p.H, p.K}, DType::f32);
  }
  WalkParams forwards = walk_params(f, prepared, d_o, p.v, walked(prepared.k, p.k), false);
  forwards.states = cuda::address_of<float>(states);
  forwards.kept = static_cast<uint4*>(cuda::address(kept));
  forwards.out = rows_of(result.across_q);
  launch_walk_keys(ctx, forwards);
  WalkParams backwards = walk_params(f, prepared, p.v, d_o, walked(prepared.q, p.q), true);
  backwards.states = cuda::address_of<float>(gradients);
  backwards.kept = forwards.kept;
  backwards.spanning = cuda::address_of<float>(result.spanning);
  backwards.out = rows_of(result.across_k);
  launch_walk_keys(ctx, backwards);
  return result;
}

/// Gradients of q, k and log_decay, those of them that are wanted.
void finish(Context& ctx, const FastProblem& f, const KeyWalks& walks, const void* d_o, GatedLinearAttention::Inputs& d_in) {
  const Problem& p = f.problem;
  const bool constant = d_in.log_decay && d_in.log_decay.rank() == 1;
  const Tensor sums = constant ? Tensor::empty(ctx, {f.num_tokens, p.H}, DType::f32) : d_in.log_decay;
  FinishParams params = {};
  params.problem = p;
  params.chunks = f.chunks;
  params.d_o = static_cast<const bf16*>(d_o);
  params.across_q = rows_of(walks.across_q);
  params.across_k = rows_of(walks.across_k);
  params.spanning = cuda::address_of<float>(walks.spanning);
  params.d_q = rows_of(d_in.q);
  params.d_k = rows_of(d_in.k);
  params.d_decay = cuda::address(sums);
  params.parts = num_column_parts(p.V);
  params.d_decay_is_float = sums && sums.dtype() == DType::f32;
  if (p.decay_key) launch_finish_channel(ctx, params);
  else launch_finish_head(ctx, params);
  if (constant) cuda::sum_partials(ctx, sums, d_in.log_decay);
}

}  // namespace

bool takes_fast_path(const Problem& p, const Tensor& q, const GatedLinearAttention::Attrs& attrs) {
  const bool aligned = cuda::aligned16(p.q) && cuda::aligned16(p.k) && cuda::aligned16(p.v) && cuda::aligned16(p.log_decay);
  return q.dtype() == DType::bf16 && is_built(p.K) && is_built(p.V) && attrs.seqs.max_length() >= kMinTokens && aligned;
}

GatedLinearAttention::Saved forward_fast(Context& ctx, const Problem& p, const GatedLinearAttention::Inputs& in,
                                         const GatedLinearAttention::Attrs& attrs, GatedLinearAttention::Outputs& out) {
  const FastProblem f = fast_problem(ctx, p, attrs.seqs);
  const Prepared ready = prepared(ctx, f);
  WalkParams walk = walk_params(f, ready, walked(ready.q, p.q), walked(ready.k, p.k), p.v, false);
  const Tensor states = segment_states(ctx, f, walk, in.initial_state);
  walk.states = cuda::address_of<float>(states);
  walk.last = out.final_state.data<float>();
  walk.out = rows_of(out.o);
  launch_walk_values(ctx, walk);
  GatedLinearAttention::Saved saved{in.q, in.k, in.v, in.log_decay, in.initial_state, states, {}, {}, {}};
  if (!p.decay_key) saved.pairs = ready.pairs, saved.decay = ready.decay, saved.factors = ready.factors;
  return saved;
}

void backward_fast(Context& ctx, const Problem& p, const GatedLinearAttention::Saved& saved, const GatedLinearAttention::Attrs& attrs,
                   const GatedLinearAttention::Outputs& d_out, GatedLinearAttention::Inputs& d_in) {
  const FastProblem f = fast_problem(ctx, p, attrs.seqs);
  const Prepared ready = p.decay_key ? prepared(ctx, f) : Prepared{{}, {}, saved.pairs, saved.decay, saved.factors};
  Tensor d_o = d_out.o;
  if (!d_o) d_o = Tensor::zeros(ctx, saved.v.shape(), DType::bf16);
  WalkParams walk = walk_params(f, ready, walked(ready.k, p.k), walked(ready.q, p.q), d_o.raw(), true);
  const Tensor gradients = segment_states(ctx, f, walk, d_out.final_state);
  if (d_in.v || d_in.initial_state) {
    Tensor d_v = d_in.v;
    if (!d_v) d_v = Tensor::empty(ctx, saved.v.shape(), DType::bf16);
    walk.states = cuda::address_of<float>(gradients);
    walk.last = cuda::address_of<float>(d_in.initial_state);
    walk.out = rows_of(d_v);
    launch_walk_values(ctx, walk);
  }
  if (!d_in.q && !d_in.k && !d_in.log_decay) return;
  const KeyWalks walks = walk_keys(ctx, f, ready, d_o.raw(), saved.states, gradients, d_in.log_decay.defined());
  finish(ctx, f, walks, d_o.raw(), d_in);
}

}  // namespace braid::gla_cuda
