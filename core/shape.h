// Shapes of tensors: up to six 64-bit extents, held inline.
#pragma once
#include <array>
#include <cstdint>
#include <initializer_list>
#include <ostream>

#include "core/error.h"

namespace braid {

class Shape {
 public:
  static constexpr int kMaxRank = 6;

  Shape() = default;  // a scalar: rank 0, one element
  Shape(std::initializer_list<int64_t> extents) {
    for (int64_t extent : extents) push_back(extent);
  }

  /// Throws Error on a negative extent or a seventh one.
  void push_back(int64_t extent) {
    BRAID_CHECK(rank_ < kMaxRank, "shape: at most ", kMaxRank, " dimensions are supported");
    BRAID_CHECK(extent >= 0, "shape: an extent must not be negative, got ", extent);
    extents_[rank_++] = extent;
  }

  int rank() const { return rank_; }
  /// Extent `i`; negative counts from the back.
  int64_t operator[](int i) const { return extents_[i < 0 ? i + rank_ : i]; }
  void set(int i, int64_t extent) { extents_[i < 0 ? i + rank_ : i] = extent; }
  int64_t numel() const {
    int64_t count = 1;
    for (int i = 0; i < rank_; ++i) count *= extents_[i];
    return count;
  }
  const int64_t* begin() const { return extents_.data(); }
  const int64_t* end() const { return extents_.data() + rank_; }

  friend bool operator==(const Shape& a, const Shape& b) {
    if (a.rank_ != b.rank_) return false;
    for (int i = 0; i < a.rank_; ++i)
      if (a.extents_[i] != b.extents_[i]) return false;
    return true;
  }
  friend std::ostream& operator<<(std::ostream& out, const Shape& shape) {
    out << '[';
    for (int i = 0; i < shape.rank_; ++i) out << (i ? ", " : "") << shape.extents_[i];
    return out << ']';
  }

 private:
  std::array<int64_t, kMaxRank> extents_{};
  int rank_ = 0;
};

}  // namespace braid
