// Elementwise arithmetic on sixteen values at a time, for the CPU code of operators (include it in .cpp files only).
#pragma once
#include <algorithm>
#include <type_traits>

#include "ops/eigen.h"

namespace braid {

/// A vector of values with the functions that ops/functions.h asks for. A value's result never depends on its place among the lanes.
template <class T>
struct Lanes {
  static constexpr int64_t kSize = 16;
  using Array = Eigen::Array<T, kSize, 1>;
  Array values;

  Lanes() = default;
  explicit Lanes(T value) : values(Array::Constant(value)) {}
  template <class Expression>
  explicit Lanes(const Eigen::ArrayBase<Expression>& expression) : values(expression) {}

  /// The first `count` ≤ kSize values at `from`, then zeros.
  static Lanes load(const T* from, int64_t count) {
    if (count == kSize) return Lanes(Eigen::Map<const Array>(from));
    Lanes lanes(T(0));
    std::copy(from, from + count, lanes.values.data());
    return lanes;
  }
  /// The same, or zeros when there is no array.
  static Lanes load_or_zero(const T* array, int64_t begin, int64_t count) { return array ? load(array + begin, count) : Lanes(T(0)); }
  void store(T* to, int64_t count) const {
    if (count == kSize) Eigen::Map<Array>{to} = values;
    else std::copy(values.data(), values.data() + count, to);
  }
  T sum() const { return values.sum(); }

  friend Lanes operator+(const Lanes& a, const Lanes& b) { return Lanes(a.values + b.values); }
  friend Lanes operator-(const Lanes& a, const Lanes& b) { return Lanes(a.values - b.values); }
  friend Lanes operator*(const Lanes& a, const Lanes& b) { return Lanes(a.values * b.values); }
  friend Lanes operator/(const Lanes& a, const Lanes& b) { return Lanes(a.values / b.values); }
  friend Lanes operator-(const Lanes& a) { return Lanes(-a.values); }
  Lanes& operator+=(const Lanes& other) { return values += other.values, *this; }

  friend Lanes minimum(const Lanes& a, const Lanes& b) { return Lanes((a.values.min)(b.values)); }
  friend Lanes maximum(const Lanes& a, const Lanes& b) { return Lanes((a.values.max)(b.values)); }
  friend Lanes abs(const Lanes& a) { return Lanes(a.values.abs()); }
  friend Lanes exp(const Lanes& a) { return Lanes(a.values.exp()); }
  friend Lanes log1p(const Lanes& a) { return Lanes(a.values.log1p()); }
  friend Lanes tanh(const Lanes& a) { return Lanes(a.values.tanh()); }
  /// Lane by lane: a < b ? yes : no.
  friend Lanes where_less(const Lanes& a, const Lanes& b, const Lanes& yes, const Lanes& no) {
    return Lanes((a.values < b.values).select(yes.values, no.values));
  }
};

/// body(i, count) for i = 0, 16, … below `size`: count is 16 (as a constant) but for the last.
template <class Body>
void for_lanes(int64_t size, Body&& body) {
  constexpr int64_t kSize = Lanes<float>::kSize;
  int64_t i = 0;
  for (; i + kSize <= size; i += kSize) body(i, std::integral_constant<int64_t, kSize>{});
  if (i < size) body(i, size - i);
}

/// body(begin, end) over ranges of `size` elements, on all threads.
template <class Body>
void parallel_elements(Context& ctx, int64_t size, Body&& body) {
  ctx.parallel_for(size, 1 << 14, body);
}

/// out[i] = function(in[i]…) for all i < size, on all threads; the function takes and gives Lanes.
template <class T, class Function, class... In>
void map_lanes(Context& ctx, int64_t size, T* out, Function&& function, const In*... in) {
  parallel_elements(ctx, size, [&](int64_t begin, int64_t end) {
    for_lanes(end - begin, [&](int64_t i, auto count) { function(Lanes<T>::load(in + begin + i, count)...).store(out + begin + i, count); });
  });
}

}  // namespace braid
