#include "ops/rotary.h"

#include <cmath>

#include "ops/checks.h"
#include "ops/rows.h"

namespace braid {
namespace {

/// cos and sin of position · theta^(−2i/D) for the positions of a call. Few positions are computed one by one; for many, the turn
/// of p = 64·c + f is that of 64·c times that of f, so that sines and cosines are computed for a small part of them.
class Turns {
 public:
  Turns(int64_t half, double theta, int64_t first, int64_t last, int64_t num_tokens) : half_(half), first_(first) {
    for (int64_t i = 0; i < half; ++i) frequencies_.push_back(std::pow(theta, -static_cast<double>(i) / static_cast<double>(half)));
    if (num_tokens <= kFine) return;
    for (int64_t f = 0; f < std::min(kFine, last - first); ++f) append(fine_, f);
    for (int64_t p = first; p < last; p += kFine) append(coarse_, p);
  }

  /// cos, sin [D/2] at `position`.
  template <class T>
  void at(int64_t position, T* cos, T* sin) const {
    if (fine_.empty()) {
      for (int64_t i = 0; i < half_; ++i) {
        const double angle = static_cast<double>(position) * frequencies_[i];
        cos[i] = static_cast<T>(std::cos(angle)), sin[i] = static_cast<T>(std::sin(angle));
      }
      return;
    }
    const int64_t c = (position - first_) / kFine, f = (position - first_) % kFine;
    const double* cos_c = coarse_.data() + 2 * half_ * c;
    const double* sin_c = cos_c + half_;
    const double* cos_f = fine_.data() + 2 * half_ * f;
    const double* sin_f = cos_f + half_;
    for (int64_t i = 0; i < half_; ++i) {
      cos[i] = static_cast<T>(cos_c[i] * cos_f[i] - sin_c[i] * sin_f[i]);
      sin[i] = static_cast<T>(sin_c[i] * cos_f[i] + cos_c[i] * sin_f[i]);
    }
  }

 private:
  static constexpr int64_t kFine = 64;

  void append(std::vector<double>& table, int64_t position) const {
    for (double frequency : frequencies_) table.push_back(std::cos(static_cast<double>(position) * frequency));
    for (double frequency : frequencies_) table.push_back(std::sin(static_cast<double>(position) * frequency));
  }

  int64_t half_, first_;
  std::vector<double> frequencies_;
  std::vector<double> fine_, coarse_;  // [positions, 2 (cos, sin), D/2]
};

/// y = x turned forwards (direction 1) or backwards (−1).
template <class T>
void turn(Context& ctx, const Tensor& x, const Rotary::Attrs& attrs, int direction, const Tensor& y) {
  const int64_t N = x.size(0), H = x.size(1), half = x.size(2) / 2;
  if (y.numel() == 0) return;
  std::vector<int64_t> shifts(attrs.seqs.count());  // position − token, by sequence
  int64_t first = INT64_MAX, last = 0;
  for (int64_t s = 0; s < attrs.seqs.count(); ++s) {
    const int64_t offset = attrs.offsets.empty() ? 0 : attrs.offsets[s];
    shifts[s] = offset - attrs.seqs.begin(s);
    if (attrs.seqs.length(s) == 0) continue;
    first = std::min(first, offset), last = std::max(last, offset + attrs.seqs.length(s));
  }
  const Turns turns(half, attrs.theta, first, last, N);
  const T* x_data = x.data<T>();
  T* y_data = y.data<T>();
  const std::vector<int64_t>& starts = attrs.seqs.cu_seqlens();
  ctx.parallel_for(N, rows_per_range(2 * H * half), [&](int64_t begin, int64_t end) {
    using Row = Eigen::Array<T, Eigen::Dynamic, 1>;
    Row cos(half), sin(half);
    int64_t s = std::upper_bound(starts.begin(), starts.end(), begin) - starts.begin() - 1;
    for (int64_t n = begin; n < end; ++n) {
      while (n >= attrs.seqs.end(s)) ++s;
      turns.at(n + shifts[s], cos.data(), sin.data());
      if (direction < 0) sin = -sin;
      for (int64_t h = 0; h < H; ++h) {
        const int64_t at = (n * H + h) * 2 * half;
        const auto x1 = array(x_data + at, half), x2 = array(x_data + at + half, half);
        array(y_data + at, half) = x1 * cos - x2 * sin;
        array(y_data + at + half, half) = x2 * cos + x1 * sin;
      }
    }
  });
}

}  // namespace

Rotary::Outputs Rotary::allocate(Context& ctx, const Inputs& in, const Attrs& attrs) {
  check_tensor(name, "x", in.x, {{"N"}, {"H"}, {"D"}});
  BRAID_CHECK(in.x.size(2) % 2 == 0, name, ": x must have an even D, got ", in.x.shape());
  attrs.seqs.require_tokens(name, "x", in.x.size(0));
  BRAID_CHECK(attrs.theta > 0 && std::isfinite(attrs.theta), name, ": theta must be positive, got ", attrs.theta);
  const int64_t S = attrs.seqs.count(), given = static_cast<int64_t>(attrs.offsets.size());
  BRAID_CHECK(given == 0 || given == S, name, ": offsets must be one per sequence, S = ", S, ", got ", given);
  for (int64_t offset : attrs.offsets) BRAID_CHECK(offset >= 0, name, ": offsets must not be negative, got ", offset);
  return {Tensor::empty(ctx, in.x.shape(), in.x.dtype())};
}

Rotary::Saved Rotary::forward_cpu(Context& ctx, const Inputs& in, const Attrs& attrs, Outputs& out) {
  dispatch_real(name, in.x.dtype(), [&]<class T>() { turn<T>(ctx, in.x, attrs, 1, out.y); });
  return {};
}

void Rotary::backward_cpu(Context& ctx, const Saved&, const Attrs& attrs, const Outputs& d_out, Inputs& d_in) {
  if (!d_in.x) return;
  dispatch_real(name, d_out.y.dtype(), [&]<class T>() { turn<T>(ctx, d_out.y, attrs, -1, d_in.x); });
}

}  // namespace braid
