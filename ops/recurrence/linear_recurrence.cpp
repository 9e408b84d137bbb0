#include "ops/recurrence/linear_recurrence.h"

#include "ops/checks.h"
#include "ops/rows.h"

namespace braid {
namespace {

/// Channels that one thread carries through a sequence: eight cache lines of float32 a row.
constexpr int kChannels = 128;

template <class T>
struct Forward {
  int64_t D;
  const T *x, *log_decay;  // [N, D]
  const T* initial_state;  // [S, D] or null
  T *o, *final_state;      // [N, D], [S, D]
};

template <class T>
struct Backward {
  int64_t D;
  const T *log_decay, *o;            // [N, D]
  const T* initial_state;            // [S, D] or null
  const T *d_o, *d_final_state;      // [N, D], [S, D]; null: zero
  T *d_x, *d_log_decay, *d_initial;  // null: not wanted
};

template <class T, int Size>
auto channels(T* data, int64_t size) {
  using Array = Eigen::Array<std::remove_const_t<T>, Size, 1>;
  return Eigen::Map<std::conditional_t<std::is_const_v<T>, const Array, Array>>(data, size);
}

/// Channels [first, first + width) of sequence s; Size is width, or Eigen::Dynamic.
template <int Size, class T>
void forward_block(const Forward<T>& op, const Sequences& seqs, int64_t s, int64_t first, int64_t width) {
  Eigen::Array<T, Size, 1> h(width);
  if (op.initial_state) h = channels<const T, Size>(op.initial_state + s * op.D + first, width);
  else h.setZero();
  for (int64_t t = seqs.begin(s); t < seqs.end(s); ++t) {
    const int64_t at = t * op.D + first;
    h = channels<const T, Size>(op.log_decay + at, width).exp() * h + channels<const T, Size>(op.x + at, width);
    channels<T, Size>(op.o + at, width) = h;
  }
  channels<T, Size>(op.final_state + s * op.D + first, width) = h;
}

template <int Size, class T>
void backward_block(const Backward<T>& op, const Sequences& seqs, int64_t s, int64_t first, int64_t width) {
  Eigen::Array<T, Size, 1> g(width), decayed(width);  // gradients of h_t, and of h_{t-1} through the decay
  const int64_t state_at = s * op.D + first;
  if (op.d_final_state) decayed = channels<const T, Size>(op.d_final_state + state_at, width);
  else decayed.setZero();
  for (int64_t t = seqs.end(s) - 1; t >= seqs.begin(s); --t) {
    const int64_t at = t * op.D + first;
    g = decayed;
    if (op.d_o) g += channels<const T, Size>(op.d_o + at, width);
    if (op.d_x) channels<T, Size>(op.d_x + at, width) = g;
    decayed = channels<const T, Size>(op.log_decay + at, width).exp() * g;
    if (!op.d_log_decay) continue;
    const T* before = t > seqs.begin(s) ? op.o + at - op.D : op.initial_state ? op.initial_state + state_at : nullptr;
    if (before) channels<T, Size>(op.d_log_decay + at, width) = decayed * channels<const T, Size>(before, width);
    else channels<T, Size>(op.d_log_decay + at, width).setZero();
  }
  if (op.d_initial) channels<T, Size>(op.d_initial + state_at, width) = decayed;
}

/// body.operator()<Size>(s, first, width) for every sequence and block of channels: whole rows in the token-by-token form.
template <class Body>
void for_each_block(Context& ctx, const LinearRecurrence::Attrs& attrs, int64_t D, const Body& body) {
  const Sequences& seqs = attrs.seqs;
  if (chosen_form(attrs.form, seqs.max_length()) == Form::token) {
    const int64_t elements = std::max<int64_t>(1, seqs.num_tokens() / std::max<int64_t>(1, seqs.count()) * D);
    ctx.parallel_for(seqs.count(), rows_per_range(elements), [&](int64_t begin, int64_t end) {
      for (int64_t s = begin; s < end; ++s) body.template operator()<Eigen::Dynamic>(s, int64_t{0}, D);
    });
    return;
  }
  const int64_t num_blocks = (D + kChannels - 1) / kChannels;
  const int64_t elements = std::max<int64_t>(1, seqs.num_tokens() / std::max<int64_t>(1, seqs.count()) * kChannels);
  ctx.parallel_for(seqs.count() * num_blocks, rows_per_range(elements), [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t first = unit % num_blocks * kChannels, width = std::min<int64_t>(kChannels, D - first);
      if (width == kChannels) body.template operator()<kChannels>(unit / num_blocks, first, width);
      else body.template operator()<Eigen::Dynamic>(unit / num_blocks, first, width);
    }
  });
}

}  // namespace

LinearRecurrence::Outputs LinearRecurrence::allocate(Context& ctx, const Inputs& in, const Attrs& attrs) {
  check_tensor(name, "x", in.x, {{"N"}, {"D"}});
  const int64_t N = in.x.size(0), D = in.x.size(1);
  const DType acc = accumulator(in.x.dtype());
  check_tensor(name, "log_decay", in.log_decay, {{"N", N}, {"D", D}}, in.log_decay && in.log_decay.dtype() == acc ? acc : in.x.dtype());
  attrs.seqs.require_tokens(name, "x", N);
  const int64_t S = attrs.seqs.count();
  if (in.initial_state) check_tensor(name, "initial_state", in.initial_state, {{"S", S}, {"D", D}}, acc);
  return {Tensor::empty(ctx, {N, D}, in.x.dtype()), final_state_for(ctx, attrs, in.initial_state, {S, D}, acc)};
}

LinearRecurrence::Saved LinearRecurrence::forward_cpu(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out) {
  const int64_t D = in.x.size(1);
  dispatch_real(name, in.x.dtype(), [&]<class T>() {
    const Forward<T> op{D, in.x.data<T>(), in.log_decay.data<T>(), data_or_null<T>(in.initial_state), out.o.data<T>(), out.final_state.data<T>()};
    for_each_block(ctx, attrs, D, [&]<int Size>(int64_t s, int64_t first, int64_t width) { forward_block<Size>(op, attrs.seqs, s, first, width); });
  });
  return {in.log_decay, in.initial_state, out.o};
}

void LinearRecurrence::backward_cpu(Context& ctx, const Saved& saved, const Attrs& attrs, const Outputs& d_out, Inputs& d_in) {
  const int64_t D = saved.o.size(1);
  dispatch_real(name, saved.o.dtype(), [&]<class T>() {
    const Backward<T> op{D,
                         saved.log_decay.data<T>(),
                         saved.o.data<T>(),
                         data_or_null<T>(saved.initial_state),
                         data_or_null<T>(d_out.o),
                         data_or_null<T>(d_out.final_state),
                         data_or_null<T>(d_in.x),
                         data_or_null<T>(d_in.log_decay),
                         data_or_null<T>(d_in.initial_state)};
    for_each_block(ctx, attrs, D, [&]<int Size>(int64_t s, int64_t first, int64_t width) { backward_block<Size>(op, attrs.seqs, s, first, width); });
  });
}

}  // namespace braid
