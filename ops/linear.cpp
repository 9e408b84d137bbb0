#include "ops/linear.h"

#include "ops/checks.h"
#include "ops/gemm.h"
#include "ops/rows.h"

namespace braid {
namespace {

/// Product of all extents but the last.
int64_t leading_size(const Tensor& tensor) {
  int64_t count = 1;
  for (int i = 0; i + 1 < tensor.rank(); ++i) count *= tensor.size(i);
  return count;
}

template <class T>
void repeat_row(Context& ctx, const T* row, int64_t rows, int64_t size, T* to) {
  ctx.parallel_for(rows, rows_per_range(size), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) std::copy(row, row + size, to + i * size);
  });
}

template <class T>
void sum_rows(Context& ctx, const T* from, int64_t rows, int64_t size, T* sum) {
  std::fill(sum, sum + size, T(0));
  sum_over_rows<T>(ctx, rows, rows_per_range(size), size, sum, [&](int64_t begin, int64_t end, T* partial) {
    for (int64_t row = begin; row < end; ++row) array(partial, size) += array(from + row * size, size);
  });
}

/// Linear on a GPU's tape: OpNode (autograd/apply.h), except that d_x is added in place.
class LinearNode final : public Node {
 public:
  LinearNode(Linear::Saved saved, const Tensor& bias, Context& ctx)
      : saved_(std::move(saved)),
        x_slot_(ctx.tape->slot_of(saved_.x)),
        weight_slot_(ctx.tape->slot_of(saved_.weight)),
        bias_slot_(ctx.tape->slot_of(bias)),
        bias_type_(bias ? bias.dtype() : DType::f32) {
    saved_ = {saved_.x.detached(), saved_.weight.detached()};
  }
  std::string_view name() const override { return Linear::name; }
  void visit_saved(FunctionRef<void(const Tensor&)> visit) const override {
    visit(saved_.x);
    visit(saved_.weight);
  }
  bool is_tracked() const { return x_slot_ >= 0 || weight_slot_ >= 0 || bias_slot_ >= 0; }

  void backward([[maybe_unused]] Context& ctx, [[maybe_unused]] Tape& tape) override {
    if constexpr (kWithCuda) {
      Linear::Outputs d_out{tape.take_grad(output_slot)};
      if (!d_out.y) return;
      const WithOperator running(Linear::name, true);
      ScopedTime timed(ctx.profile ? &ctx.profile->entry(Linear::name).backward_ms : nullptr);
      Linear::Inputs d_in;
      Linear::Attrs attrs;
      const Gathered gathered = x_slot_ >= 0 ? gathered_d_x(ctx, tape) : Gathered{};
      attrs.adds_d_x = gathered.d_x.defined();
      if (gathered.d_x) d_in.x = gathered.d_x;
      else if (x_slot_ >= 0) d_in.x = Tensor::empty(ctx, saved_.x.shape(), saved_.x.dtype());
      const Tensor weight_buffer = tape.leaf_buffer(weight_slot_);
      if (weight_buffer) d_in.weight = weight_buffer.view(saved_.weight.shape());
      else if (weight_slot_ >= 0) d_in.weight = Tensor::zeros(ctx, saved_.weight.shape(), accumulator(saved_.weight.dtype()));
      if (bias_slot_ >= 0) d_in.bias = Tensor::empty(ctx, {saved_.weight.size(0)}, bias_type_);
      Linear::backward_cuda(ctx, saved_, attrs, d_out, d_in);
      d_out = {};
      if (!gathered.stays) tape.accumulate(ctx, x_slot_, d_in.x);
      if (!weight_buffer) tape.accumulate(ctx, weight_slot_, d_in.weight);
      tape.accumulate(ctx, bias_slot_, d_in.bias);
    }
  }

  int64_t output_slot = -1;

 private:
  struct Gathered {
    Tensor d_x;          // may be added to; undefined: nothing was gathered, or what was is shared
    bool stays = false;  // in the tape, which was not robbed of it: x is a leaf
  };
  Gathered gathered_d_x(Context& ctx, Tape& tape) const {
    const Tensor d_x = tape.take_grad(x_slot_);
    if (!d_x) return {};
    const bool stays = tape.take_grad(x_slot_).defined();
    const bool shared = d_x.storage().use_count() > (stays ? 2 : 1);
    if (!shared && d_x.dtype() == saved_.x.dtype() && d_x.contiguous()) return {d_x, stays};
    if (!stays) tape.accumulate(ctx, x_slot_, d_x);
    return {};
  }

  Linear::Saved saved_;
  int64_t x_slot_, weight_slot_, bias_slot_;
  DType bias_type_;
};

}  // namespace

Tensor linear(Context& ctx, const Tensor& x, const Tensor& weight, const Tensor& bias) {
  if (ctx.on_cpu() || !ctx.tape || !kWithCuda) return apply<Linear>(ctx, {x, weight, bias}).y;
  auto node = std::make_unique<LinearNode>(Linear::Saved{x, weight}, bias, ctx);
  Tensor y;
  {
    WithTape silent(ctx, nullptr);
    y = apply<Linear>(ctx, {x.detached(), weight.detached(), bias.detached()}).y;
  }
  if (!node->is_tracked()) return y;
  y = ctx.tape->track(y);
  node->output_slot = ctx.tape->slot_of(y);
  ctx.tape->push(std::move(node));
  return y;
}

Linear::Outputs Linear::allocate(Context& ctx, const Inputs& in, const Attrs&) {
  BRAID_CHECK(in.x && in.x.rank() >= 1 && is_floating(in.x.dtype()), name, ": x must be floating [..., in], got ", in.x.dtype(), " ", in.x.shape());
  check_tensor(name, "weight", in.weight, {{"out"}, {"in", in.x.size(-1)}}, in.x.dtype());
  const int64_t out_size = in.weight.size(0);
  if (in.bias) {
    const DType acc = accumulator(in.x.dtype());
    check_tensor(name, "bias", in.bias, {{"out", out_size}}, in.bias.dtype() == in.x.dtype() ? in.x.dtype() : acc);
  }
  Shape shape = in.x.shape();
  shape.set(-1, out_size);
  return {Tensor::empty(ctx, shape, in.x.dtype())};
}

Linear::Saved Linear::forward_cpu(Context& ctx, const Inputs& in, const Attrs&, Outputs& out) {
  const int64_t rows = leading_size(in.x), in_size = in.weight.size(1), out_size = in.weight.size(0);
  dispatch_real(name, in.x.dtype(), [&]<class T>() {
    T* y = out.y.data<T>();
    if (in.bias) repeat_row(ctx, in.bias.data<T>(), rows, out_size, y);
    gemm<T>(ctx, false, true, rows, out_size, in_size, T(1), in.x.data<T>(), in_size, in.weight.data<T>(), in_size, in.bias ? T(1) : T(0), y,
            out_size);
  });
  return {in.x, in.weight};
}

void Linear::backward_cpu(Context& ctx, const Saved& saved, const Attrs&, const Outputs& d_out, Inputs& d_in) {
  const int64_t rows = leading_size(saved.x), in_size = saved.weight.size(1), out_size = saved.weight.size(0);
  dispatch_real(name, saved.x.dtype(), [&]<class T>() {
    const T* d_y = d_out.y.data<T>();
    if (d_in.x) {
      gemm<T>(ctx, false, false, rows, in_size, out_size, T(1), d_y, out_size, saved.weight.data<T>(), in_size, T(0), d_in.x.data<T>(), in_size);
    }
    if (d_in.weight) {
      gemm<T>(ctx, true, false, out_size, in_size, rows, T(1), d_y, out_size, saved.x.data<T>(), in_size, T(1), d_in.weight.data<T>(), in_size);
    }
    if (d_in.bias) sum_rows(ctx, d_y, rows, out_size, d_in.bias.data<T>());
  });
}

}  // namespace braid
